"""`bf16_copies`: the model computes with bf16 copies of its fp32 weights, made anew for each optimizer step.

Autocast casts every fp32 weight in each forward pass, and leaves the residual stream and the norms in fp32. Copies are
made once a step, and what flows between the layers is bf16, as under DeepSpeed. The fp32 weights stay the model's
parameters for all else: gradients are added up in fp32 (micro-batches too), and clipping, optimizer, checkpoints and
final model are those of a run without copies.

Mixed precision with fp32 master weights: Micikevicius et al., 2018 (https://arxiv.org/abs/1710.03740).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import AutocastKwargs, is_peft_model
from transformers.core_model_loading import build_glob_alternation

DTYPE = torch.bfloat16


class Bf16Copies:
    """Copies of a model's fp32 weights, which take their places for a while.

    Args:
        model: not wrapped, on its device, without adapters. Weights in another dtype, and those that transformers keeps
            in fp32 for a model in bf16, stay as they are.
    """

    def __init__(self, model: torch.nn.Module):
        self._pairs: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}  # by the weight's id
        self._places: list[tuple[torch.nn.Module, str, torch.nn.Parameter, torch.nn.Parameter]] = []
        for module, name, weight in _weights_to_copy(model):
            if id(weight) not in self._pairs:  # tied weights have one copy
                self._pairs[id(weight)] = weight, _copy_of(weight)
            self._places.append((module, name, *self._pairs[id(weight)]))
        self._stale = True
        self._in_place = False

    def __len__(self) -> int:
        return len(self._pairs)

    def outdate(self) -> None:
        """The weights are about to change: the copies are made anew before they are used again."""
        self._stale = True

    @torch.no_grad()
    def _renew(self) -> None:
        masters, copies = zip(*self._pairs.values(), strict=True)
        torch._foreach_copy_(copies, masters)
        self._stale = False

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Forward and backward passes in here compute with the copies, and add to the gradients of the weights."""
        if self._in_place:
            yield
            return
        if self._stale:
            self._renew()
        self._in_place = True
        try:
            for module, name, _, copy in self._places:
                module._parameters[name] = copy
            yield
        finally:
            for module, name, master, _ in self._places:
                module._parameters[name] = master
            self._in_place = False


def _weights_to_copy(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """(module, name in it, weight) of each fp32 weight that transformers would load in bf16."""
    kept = _kept_in_fp32(model)
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.dtype == torch.float32 and not kept(f"{path}.{name}"):
                yield module, name, weight


def _kept_in_fp32(model: Any) -> Callable[[str], bool]:
    """Whether transformers keeps a weight of that name in fp32 when it loads the model in bf16."""
    plan = model._get_dtype_plan(DTYPE)
    if not plan:
        return lambda name: False
    pattern, _, _ = build_glob_alternation(list(plan))
    return lambda name: pattern.search(name) is not None


def _copy_of(master: torch.nn.Parameter) -> torch.nn.Parameter:
    """A copy, not yet filled, whose gradients go to the weight that it is of."""
    copy = torch.nn.Parameter(torch.empty_like(master, dtype=DTYPE), requires_grad=master.requires_grad)

    def hand_on(copy: torch.Tensor) -> None:
        gradient, copy.grad = copy.grad, None
        assert gradient is not None
        if master.grad is None:
            master.grad = gradient.to(master.dtype)
        else:
            master.grad.add_(gradient)

    if master.requires_grad:
        copy.register_post_accumulate_grad_hook(hand_on)
    return copy


def make(trainer: Any) -> Bf16Copies:
    """The copies for a trainer that has prepared nothing yet; what computes with them does so without autocast.

    Raises:
        ValueError: the run is in fp16 or fp32, shards or shares its weights, or trains adapters.
    """
    accelerator, model = trainer.accelerator, trainer.model
    if accelerator.mixed_precision != "bf16":
        raise ValueError(f"bf16_copies: expected bf16: true, found mixed precision {accelerator.mixed_precision!r}")
    kind = accelerator.distributed_type.value
    if kind != "NO":
        raise ValueError(
            f"bf16_copies: expected one process without DeepSpeed or FSDP, found {kind}: leave it out; under DeepSpeed "
            "weights are bf16 with fp32 masters by themselves"
        )
    if is_peft_model(model):
        raise ValueError("bf16_copies: adapters are trained: leave it out and write dtype: bfloat16 for the weights")
    copies = Bf16Copies(model)
    if not copies:
        raise ValueError("bf16_copies: expected weights in fp32, found none: write dtype: float32")
    accelerator.autocast_handler = AutocastKwargs(enabled=False)
    return copies
