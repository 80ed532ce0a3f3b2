"""Estimates of a checkpoint before one was measured: its bytes, the largest part of it, seconds to write it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainingArguments


def estimate_size(model: Any, args: TrainingArguments) -> int:
    """Bytes that a first checkpoint takes at least: the weights, and two states of each trained weight."""
    per_state = 1 if "8bit" in str(args.optim) else 4
    total = 0
    for parameter in model.parameters():
        number = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves nothing in the parameter itself
        total += number * parameter.element_size() + (2 * per_state * number if parameter.requires_grad else 0)
    return total


def largest_part(model: Any, args: TrainingArguments, is_sharded: bool) -> float:
    """About how many bytes the first process writes of a checkpoint: its part of what is sharded, and all weights."""
    total = 2 * estimate_size(model, args)
    if not is_sharded:
        return total
    weights: int = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters())
    own_part: float = total / args.world_size
    return weights + own_part


def estimate_seconds(size: float, folder: Path) -> float:
    """About how long this process writes `size` bytes there, by the speed of a small file.

    As if all processes could write as fast at the same time, so it may take longer; it does not take much less.
    """
    block, file = bytes(16 * 2**20), folder / ".speed"
    began = time.perf_counter()
    try:
        with file.open("wb") as probe:
            probe.write(block)
            probe.flush()
            os.fsync(probe.fileno())
    finally:
        file.unlink(missing_ok=True)
    return size / len(block) * (time.perf_counter() - began)
