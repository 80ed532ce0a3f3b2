"""Estimates of a checkpoint before one was measured: its bytes, the largest part of it, seconds to write it."""

from __future__ import annotations

import math
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
        number = _whole_number(parameter)
        total += number * parameter.element_size() + (2 * per_state * number if parameter.requires_grad else 0)
    return total


def _whole_number(parameter: Any) -> int:
    """Numbers in a parameter over all processes.

    ZeRO-3 leaves nothing in the parameter itself, expert parallelism this process's experts.
    """
    experts = getattr(parameter, "ds_autoep_uc_meta", None)
    if experts:
        return math.prod(experts["logical_shape"])
    number: int = getattr(parameter, "ds_numel", parameter.numel())
    return number


def largest_part(model: Any, args: TrainingArguments, is_sharded: bool) -> float:
    """About how many bytes the first process writes of a checkpoint: its part of what is sharded, and all weights."""
    total = 2 * estimate_size(model, args)
    if not is_sharded:
        return total
    weights: int = sum(_whole_number(p) * p.element_size() for p in model.parameters())
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
