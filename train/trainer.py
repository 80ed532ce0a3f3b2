"""TRL's SFTTrainer with what it lacks: token-weighted evaluation and checkpoints that are complete or not there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from train.data import SourceCollator
from train.data_position import DataPosition
from train.evaluation import metrics_by_source, sum_by_source
from train.save_parts import rows_per_step
from train.saving import CheckpointSaving


class PackedSFTTrainer(CheckpointSaving, DataPosition, SFTTrainer):
    """SFTTrainer over packed rows with a `sources` column.

    Args:
        source_names: the manifest's sources, in order.
        checkpoint_extra: what goes into each checkpoint's marker beside step and world size.
    """

    def __init__(self, *args: Any, source_names: list[str], checkpoint_extra: dict[str, Any], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.source_names = source_names
        self.checkpoint_extra = checkpoint_extra
        self.data_collator = SourceCollator(self.data_collator)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; the model does not know `source_ids`."""
        inputs.pop("source_ids", None)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Replaces the mean over batches by the mean over tokens."""
        if not self.is_in_train and self.is_deepspeed_enabled and self.deepspeed is None:
            raise ValueError(
                "evaluate() before train() is not supported under DeepSpeed: set eval_on_start=True instead"
            )
        model = self._wrap_model(self.model, training=False)
        model.eval()
        batches = (self._prepare_inputs(batch) for batch in dataloader)
        sums = sum_by_source(model, batches, len(self.source_names), self.accelerator)
        metrics = metrics_by_source(sums, self.source_names, metric_key_prefix)
        count = len(dataloader.dataset)
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=count)


def steps_per_epoch(num_rows: int, args: Any) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(num_rows / rows_per_step(args))


def is_main(args: Any) -> bool:
    """Whether this process is the first of the world."""
    return args.process_index == 0


def all_reduce_max(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process. Every process must call it."""
    value = torch.tensor([int(flag)], device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())
