"""The share of a micro-batch in the experts' balancing loss: a mean over the micro-batches that train a token.

A step's micro-batches of all processes count alike, whatever their tokens. Those of filler rows alone, which the last
step of an epoch may have, do not count: their routing is that of no data. The loss of a micro-batch is a mean over its
own tokens (transformers' `load_balancing_loss_func`), so its value depends on how many rows a micro-batch has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from data_prep.shards import IGNORE_INDEX

if TYPE_CHECKING:
    from accelerate import Accelerator

Batch = Mapping[str, torch.Tensor]


class BalancingShare:
    """Counts the micro-batches of a step that train a token, and gives each its share.

    Args:
        accelerator: of the training, whose processes average their gradients.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._counted: torch.Tensor | None = None  # over all processes

    def begin_step(self, batches: Iterable[Batch]) -> None:
        """Count the micro-batches of all processes, without waiting for the device. Every process must call it."""
        mine = torch.zeros((), dtype=torch.long, device=self._accelerator.device)
        for batch in batches:
            mine += _trains(batch).to(mine.device)
        self._counted = self._accelerator.reduce(mine, reduction="sum").clamp(min=1)

    def of(self, batch: Batch) -> torch.Tensor:
        """What to multiply a micro-batch's loss by, so that the processes' mean of sums is the mean: a scalar."""
        assert self._counted is not None, "begin_step comes first"
        return _trains(batch) * (self._accelerator.num_processes / self._counted)


def _trains(batch: Batch) -> torch.Tensor:
    """1 if the micro-batch has a trained token, else 0."""
    return (batch["labels"][..., 1:] != IGNORE_INDEX).any().long()
