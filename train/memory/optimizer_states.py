"""Bytes of an optimizer's states for one weight, as the optimizer's own code allocates them."""

from __future__ import annotations

from dataclasses import dataclass

_BLOCK = 256  # weights of a quantisation constant in 8-bit states (bitsandbytes.optim.optimizer)
_SMALLEST_8BIT, _SMALLEST_PAGED = 4096, 100_000  # elements; smaller weights have fp32 states, on the GPU
# States of a weight's shape, in the weight's dtype (torch.optim).
_TORCH = {"adamw_torch": 2, "adamw_torch_fused": 2, "adamw_torch_xla": 2, "rmsprop": 1, "adagrad": 1, "sgd": 0}
# States of a weight's shape, by the part of the name that says what a bitsandbytes optimizer computes.
_BITSANDBYTES = {"ademamix": 3, "adamw": 2, "lion": 1, "rmsprop": 1}
# Needs another tensor of the size of all weights for a moment: `torch._foreach_sqrt` over one list of them all.
_FOREACH = ("adamw_torch", "rmsprop", "adagrad")


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes for one weight."""

    gpu: int
    paged: int = 0  # in memory that GPU and host share; it leaves the GPU when that is full


def is_known(optim: str) -> bool:
    """Whether this optimizer's states are counted here."""
    return optim in _TORCH or optim == "adafactor" or _bitsandbytes(optim) is not None


def states_of(optim: str, elements: int, itemsize: int, *, embedding: bool = False, columns: int = 0) -> States:
    """The states of one weight.

    Args:
        optim: as transformers names it.
        elements: of the weight, or of the part that this process updates.
        itemsize: bytes of an element.
        embedding: of `torch.nn.Embedding`, whose states transformers keeps in fp32 (`Trainer.create_optimizer`).
        columns: of a matrix; 0 for a vector or a flat part. Adafactor keeps its rows and columns.

    Raises:
        ValueError: the optimizer is not counted here.
    """
    if optim in _TORCH:
        return States(gpu=_TORCH[optim] * itemsize * elements)
    if optim == "adafactor":
        return States(gpu=4 * (elements // columns + columns) if columns else 4 * elements)
    count = _bitsandbytes(optim)
    if count is None:
        raise ValueError(f"optim {optim}: its states are not counted here: choose another one to see its memory")
    if "8bit" not in optim or elements < _SMALLEST_8BIT or embedding:
        size = count * 4 * elements
    else:
        size = count * (elements + 4 * -(-elements // _BLOCK))
    is_paged = optim.startswith("paged_") and elements >= _SMALLEST_PAGED
    return States(gpu=0, paged=size) if is_paged else States(gpu=size)


def for_a_moment(optim: str, elements: int, largest: int, itemsize: int, *, on_gpu: bool) -> int:
    """Bytes that a step takes beyond gradients and states.

    Args:
        elements: that this process updates.
        largest: elements of the largest weight, or flat part, among them.
    """
    if optim == "adafactor":
        return 2 * 4 * largest  # squared gradient and update
    if optim not in _FOREACH:
        return 0
    return itemsize * elements if on_gpu else 2 * itemsize * largest  # without foreach: root and denominator


def _bitsandbytes(optim: str) -> int | None:
    """States of a weight's shape; None for an optimizer of another package."""
    known = optim.endswith(("_8bit", "_32bit")) or optim in ("ademamix", "rmsprop_bnb")
    if not known or optim.startswith(("galore", "apollo", "adamw_torch")):
        return None
    return next((count for name, count in _BITSANDBYTES.items() if name in optim), None)
