"""Estimates of a checkpoint before one was measured: its bytes, the largest part of it, seconds to write it."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint.fsdp_states import FULL, is_sharded, state_dict_type

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from train.checkpoint.trainer_type import CheckpointedTrainer


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


def largest_part(trainer: CheckpointedTrainer) -> float:
    """About how many bytes the first process writes of a checkpoint: its part of what is sharded, and all that is not.

    DeepSpeed shards the states and gathers the weights next to them; FSDP2 shards both, or gathers both.
    """
    model, world_size = trainer.model, int(trainer.args.world_size)
    total: float = 2 * estimate_size(model, trainer.args)
    if is_sharded(trainer):
        return total / world_size
    if not trainer.is_deepspeed_enabled:
        return total
    weights: int = sum(_whole_number(p) * p.element_size() for p in model.parameters())
    return weights + total / world_size


def own_part(trainer: CheckpointedTrainer) -> float:
    """About how many bytes this process copies for a checkpoint."""
    total: float = 2 * estimate_size(trainer.model, trainer.args)
    if state_dict_type(trainer) == FULL:
        return 0.0 if trainer.args.process_index else total
    return total / int(trainer.args.world_size)


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
