"""Layers that carry a state and whose kernels take the bounds of documents: one call for the packed row.

transformers calls flash-linear-attention with `cu_seqlens`, causal-conv1d and mamba-ssm with `seq_idx`, where these
packages are installed, and computes without bounds otherwise. Each class of layers goes its own way only if all its
kernels are there and take bounds, and if the start-up proof passes with them; else its documents are rows of their own
(`train.model.documentwise`).
"""

from __future__ import annotations

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from train.model import documentwise
from train.run.distributed import gather_problems

EXTRA = "pip install '.[hybrid]'"
_BOUNDS = ("cu_seqlens", "seq_idx")
_ONE_TOKEN = ("update", "recurrent")  # in the names of functions that only generation calls
_DISTRIBUTIONS = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d", "mamba_ssm": "mamba-ssm"}


class Kernel(NamedTuple):
    """A function that transformers takes from a package, or from its own code where the package is missing."""

    name: str
    package: str
    installed: bool
    parameters: tuple[str, ...]

    @property
    def distribution(self) -> str:
        """Its name on the package index."""
        return _DISTRIBUTIONS.get(self.package, self.package)

    @property
    def version(self) -> str:
        """`flash-linear-attention 0.6.0`."""
        try:
            return f"{self.distribution} {importlib.metadata.version(self.distribution)}"
        except importlib.metadata.PackageNotFoundError:
            return self.distribution


def choose(model: torch.nn.Module, prove: Callable[[], object]) -> list[str]:
    """Let each class of layers go its own way where that is proven. Every process must call it.

    Args:
        model: with `documentwise.install`.
        prove: raises where packed documents differ from separate ones.

    Returns:
        A line for each class: which way its layers go, and why.
    """
    lines = []
    for name, layers in _by_class(model).items():
        reasons = gather_problems([reason] if (reason := lacks(layers[0])) else [])
        reason = reasons[0] if reasons else _try(model, name, layers, prove)
        packages = ", ".join(dict.fromkeys(kernel.version for kernel in kernels_of(layers[0])))
        way = f"kernels with document bounds ({packages})" if reason is None else f"one document a row, as {reason}"
        lines.append(f"{len(layers)} {name}: {way}")
    return lines


def _by_class(model: torch.nn.Module) -> dict[str, list[torch.nn.Module]]:
    found: dict[str, list[torch.nn.Module]] = {}
    for layer in documentwise.mixers(model).values():
        found.setdefault(type(layer).__name__, []).append(layer)
    return found


def _try(model: torch.nn.Module, name: str, layers: list[torch.nn.Module], prove: Callable[[], object]) -> str | None:
    """Let them go their own way; why not, if the proof fails. Kernels of training are not always those of evaluation,
    so the proof runs with the layers in both modes."""
    bounds = documentwise.bounds_of(model)
    bounds.own_way[name] = _names(layers[0])
    try:
        for bounds.training in (False, True):
            prove()
    except Exception as error:  # what a kernel raises can be anything; it is the same on every process
        del bounds.own_way[name]
        return f"the proof fails with its kernels: {error}"
    finally:
        bounds.training = False
    return None


def lacks(layer: torch.nn.Module) -> str | None:
    """Why layers like this one cannot be given the bounds of documents; None if they can."""
    kernels = kernels_of(layer)
    if not kernels or not _takes_more(layer):
        return "transformers calls no kernel for them that takes bounds"
    if not _on_gpu(layer):
        return "their kernels need a GPU"
    if missing := [kernel.distribution for kernel in kernels if not kernel.installed]:
        names = " and ".join(dict.fromkeys(missing))
        return f"{names} {'is' if ' ' not in names else 'are'} not installed: {EXTRA}"
    if without := [kernel for kernel in kernels if not set(_BOUNDS) & set(kernel.parameters)]:
        return f"{without[0].name} of {without[0].version} takes no document bounds"
    return None


def _on_gpu(layer: torch.nn.Module) -> bool:
    return next(layer.parameters()).is_cuda


def _takes_more(layer: torch.nn.Module) -> bool:
    """Whether its forward pass takes what it does not name, and hands it on."""
    parameters = inspect.signature(type(layer).forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _names(layer: torch.nn.Module) -> dict[str, str]:
    """Names by which a layer's code hands bounds on, where they are not those that the model is called with."""
    mentioned = {constant for function in _functions(type(layer)) for constant in function.__code__.co_consts}
    return {} if "cu_seq_lens_q" in mentioned else {"cu_seq_lens_q": "cu_seqlens"}


def kernels_of(layer: torch.nn.Module) -> list[Kernel]:
    """The kernels that a layer's code calls in training."""
    names = sorted({name for function in _functions(type(layer)) for name in function.__code__.co_names})
    module = sys.modules[type(layer).__module__]
    found = [_kernel(getattr(module, name, None)) for name in names]
    return [kernel for kernel in found if kernel and not any(word in kernel.name for word in _ONE_TOKEN)]


def _functions(kind: type) -> Iterator[Any]:
    """The methods of a class, within what decorates them."""
    for value in vars(kind).values():
        if inspect.isfunction(value):
            yield inspect.unwrap(value)


def _kernel(function: Any) -> Kernel | None:
    """What transformers' `use_kernel_func_from_hub_with_fallback` has found; None for any other function."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    if code is None or not cells or "is_new_implementation" not in code.co_freevars:
        return None
    held = {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True)}
    return Kernel(held["func_name"], held["package"], held["is_new_implementation"], held["applicable_params"])
