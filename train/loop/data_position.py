"""Resuming in the middle of an epoch takes no longer than starting one, whatever the step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import accelerate
import torch
import transformers.trainer
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler, Sampler
from transformers import EarlyStoppingCallback, Trainer


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


class _From(Sampler[int]):
    """A sampler's rows from a position on. The order of the epoch is drawn as a whole, as it is at its beginning."""

    def __init__(self, sampler: Any, start: int):
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[int]:
        if type(self.sampler) is not SeedableRandomSampler or self.sampler.replacement:
            yield from islice(iter(self.sampler), self.start, None)
            return
        # As that class draws it (a test compares): passing over the rows one by one would take longer than drawing.
        generator = torch.Generator().manual_seed(self.sampler.epoch + self.sampler.initial_seed)
        yield from torch.randperm(len(self.sampler), generator=generator)[self.start :].tolist()
        self.sampler.set_epoch(self.sampler.epoch + 1)

    def __len__(self) -> int:
        return len(self.sampler) - self.start

    def set_epoch(self, epoch: int) -> None:
        """Which epoch's order is drawn."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


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
        result.sampler = _From(batches.sampler, num_batches * batches.batch_size)
        return result
    return None
