"""Positions for masks: some models (gpt-oss) make their mask without them, and it would then join packed documents.

transformers finds the documents of a packed row by their positions, where a model hands these to `create_causal_mask`.
For a model that does not, the positions of its forward pass are put in.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_NAMES = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")
_current: dict[str, torch.Tensor | None] = {"position_ids": None}  # of the forward pass that runs


def install(model: torch.nn.Module) -> None:
    """Let every mask that the model makes know the positions. A second time it changes nothing.

    Args:
        model: called with `position_ids`, (1, tokens), which start again with each document.
    """
    for module in _modules_of(model):
        for name in _NAMES:
            make = getattr(module, name, None)
            if make is not None and not hasattr(make, "_given_positions"):
                setattr(module, name, _with_positions(make))
    if not hasattr(model, "_remembers_positions"):
        model._remembers_positions = True  # type: ignore[assignment]
        model.register_forward_pre_hook(_remember, with_kwargs=True)
        model.register_forward_hook(_forget, always_call=True)


def _modules_of(model: torch.nn.Module) -> list[ModuleType]:
    """The Python modules of transformers that the model's code lies in."""
    names = {type(part).__module__ for part in model.modules()}
    return [sys.modules[name] for name in sorted(names) if ".modeling_" in name and name in sys.modules]


def _remember(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    packed = kwargs.get("cu_seq_lens_q") is not None
    _current["position_ids"] = kwargs.get("position_ids") if packed else None


def _forget(module: torch.nn.Module, args: Any, output: Any) -> None:
    _current["position_ids"] = None


def _with_positions(make: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        positions = _current["position_ids"]
        if positions is None or "position_ids" not in signature.parameters:
            return make(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        if given.arguments.get("position_ids") is None:
            given.arguments["position_ids"] = positions
        return make(*given.args, **given.kwargs)

    made._given_positions = True  # type: ignore[attr-defined]
    return made
