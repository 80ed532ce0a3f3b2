"""Resuming in the middle of an epoch takes no longer than starting one, whatever the step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import accelerate
import transformers.trainer
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import EarlyStoppingCallback, Trainer

from train.loop.row_order import From


def is_over(trainer: Trainer) -> bool:
    """Whether a run is at its end before its next step; the Trainer looks only after a step."""
    return trainer.state.global_step >= trainer.state.max_steps or _has_stopped_early(trainer)


def _has_stopped_early(trainer: Trainer) -> bool:
    """Whether the checkpoint was saved when early stopping had lost its patience."""
    stoppers = [c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
    return any(c.early_stopping_patience_counter >= c.early_stopping_patience for c in stoppers)


@contextlib.contextmanager
def skipping_at_once() -> Iterator[None]:
    """Let the Trainer begin an epoch in its middle without making the batches of the steps done."""
    original = transformers.trainer.skip_first_batches
    transformers.trainer.skip_first_batches = skip_batches
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = original


def skip_batches(dataloader: Any, num_batches: int = 0) -> Any:
    """As `accelerate.skip_first_batches`, which iterates over the batches of all processes until it is there: seconds
    at step 100,000."""
    begun = _begin_at(dataloader.batch_sampler, num_batches)
    if begun is None:
        return accelerate.skip_first_batches(dataloader, num_batches)
    skipped = accelerate.skip_first_batches(dataloader, 0)
    skipped.batch_sampler.batch_sampler = begun
    return skipped


def _begin_at(batches: Any, num_batches: int) -> Any:
    """The batch sampler that begins there; None if it is of a kind whose rows cannot be counted."""
    if type(batches) is BatchSamplerShard and not batches.split_batches:
        inner = _begin_at(batches.batch_sampler, num_batches * batches.num_processes)
        if inner is None:
            return None
        result = copy.copy(batches)
        result.batch_sampler = inner
        return result
    if type(batches) is BatchSampler:
        result = copy.copy(batches)
        result.sampler = From(batches.sampler, num_batches * batches.batch_size)
        return result
    return None
