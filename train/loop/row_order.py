"""The order of packed rows in each epoch, and which of them an optimizer step takes; without transformers.

Whatever the world size, batch and accumulation, step N of an epoch takes the rows at the positions N x rows_per_step to
(N + 1) x rows_per_step of the epoch's order: each rank's batches are dealt from it in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler, SequentialSampler

from train.config.steps import steps_per_epoch


class From(Sampler[int]):
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


@dataclass(frozen=True)
class RowOrder:
    """The order of a run's rows."""

    rows: int  # packed rows of the train split, without filler rows
    rows_per_step: int
    seed: int  # data_seed
    strategy: str  # "random", or "sequential" (a curriculum)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; the last one is filled up."""
        return steps_per_epoch(self.rows, self.rows_per_step)

    def of_epoch(self, epoch: int, start: int = 0) -> list[int]:
        """The numbers of the rows of an epoch (from 0), from a position on; filler rows have numbers from `rows` on."""
        sampler = From(self._sampler(), start)
        sampler.set_epoch(epoch)
        return list(sampler)

    def of_step(self, step: int) -> tuple[int, list[int]]:
        """The epoch (from 0) of an optimizer step (from 1), and the numbers of its rows."""
        epoch, in_epoch = divmod(step - 1, self.steps_per_epoch)
        return epoch, self.of_epoch(epoch, in_epoch * self.rows_per_step)[: self.rows_per_step]

    def _sampler(self) -> Sampler[int]:
        """As transformers and accelerate make it for these rows (a test compares)."""
        numbers = range(self.steps_per_epoch * self.rows_per_step)
        if self.strategy == "sequential":
            return SequentialSampler(numbers)
        sampler: Sampler[int] = SeedableRandomSampler(numbers, data_seed=self.seed)
        return sampler
