"""Step arithmetic: packed rows of a step, steps of an epoch and of a run, as the Trainer counts them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainingArguments


def rows_per_step(
    world_size: int, per_device_train_batch_size: int, gradient_accumulation_steps: int, sequence_parallel: int = 1
) -> int:
    """Packed rows of one optimizer step, over all processes.

    Args:
        sequence_parallel: number of ranks that hold parts of the same rows; it divides the world size.
    """
    return world_size // sequence_parallel * per_device_train_batch_size * gradient_accumulation_steps


def rows_per_step_of(args: TrainingArguments, sequence_parallel: int = 1) -> int:
    """Packed rows of one optimizer step, over all processes, under these training arguments."""
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    return rows_per_step(args.world_size, batch, accumulation, sequence_parallel)


def steps_per_epoch(num_rows: int, rows_a_step: int) -> int:
    """Optimizer steps of one epoch; the last one is filled up."""
    return math.ceil(num_rows / rows_a_step)


def steps_in_all(steps_an_epoch: int, max_steps: int, num_train_epochs: float) -> int:
    """Optimizer steps of a whole run: `max_steps` where it is given (above 0), else those of all epochs."""
    return max_steps if max_steps > 0 else math.ceil(num_train_epochs * steps_an_epoch)
