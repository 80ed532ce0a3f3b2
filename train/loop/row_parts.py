"""What the trainer does otherwise where the ranks of a group hold parts of the same rows (`sequence_parallel`)."""

from __future__ import annotations

import math
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from transformers import Trainer

from train.loop.row_reader import rows_of
from train.model import sequence_parallel


class RowParts(Trainer):
    """Training and evaluation on parts of rows; without a group, on whole ones."""

    row_group: Any = None  # of the ranks that share this rank's rows

    def share_rows(self, size: int) -> sequence_parallel.Part:
        """Form the groups, and let TRL's collator fill rows up so that they can be cut. Every rank must call it.

        Returns:
            The part of each row that this rank holds.

        Raises:
            ValueError: the ranks cannot be divided into groups of `size`.
        """
        self.row_group = sequence_parallel.join(size, self.args.ddp_timeout_delta)
        if size > 1:
            collator: Any = self.data_collator
            collator.pad_to_multiple_of = math.lcm(size, collator.pad_to_multiple_of or 1)
        return sequence_parallel.part_of(self.row_group)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The ranks of a group read the same rows, as one data-parallel rank would."""
        dataloader = super()._get_dataloader(rows_of(dataset), *args, **kwargs)
        if self.row_group is not None:
            batches: Any = dataloader.batch_sampler
            if type(batches) is not BatchSamplerShard:
                raise ValueError(f"sequence_parallel: expected batches by BatchSamplerShard, found {type(batches)}")
            size = self.row_group.size()
            batches.num_processes = self.args.world_size // size
            batches.process_index = self.args.process_index // size
        return dataloader

    def get_total_train_batch_size(self, args: Any) -> int:
        """Packed rows of a step."""
        size = 1 if self.row_group is None else self.row_group.size()
        return super().get_total_train_batch_size(args) // size

    def _prepare_inputs(self, inputs: Any) -> Any:
        """With the group that attention exchanges tokens and heads in."""
        return {**super()._prepare_inputs(inputs), **sequence_parallel.arguments(self.row_group)}

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random states of a run of whole rows are the same on all ranks."""
        super()._load_rng_state(checkpoint)
        sequence_parallel.separate_random_numbers(self.row_group, self.args.seed + self.state.global_step)
