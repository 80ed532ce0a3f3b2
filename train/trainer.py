"""TRL's SFTTrainer with what it lacks: token-weighted evaluation and checkpoints that are complete or not there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer

from train import checkpoint
from train.data import SourceCollator
from train.evaluation import metrics_by_source, sum_by_source


class PackedSFTTrainer(SFTTrainer):
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
        model = self._wrap_model(self.model, training=False)  # type: ignore[arg-type]
        model.eval()
        batches = (self._prepare_inputs(batch) for batch in dataloader)
        sums = sum_by_source(model, batches, len(self.source_names), self.accelerator)
        metrics = metrics_by_source(sums, self.source_names, metric_key_prefix)
        count = len(dataloader.dataset)
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=count)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, publish when every process has finished, and only then delete old ones."""
        directory = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and directory.exists():
            checkpoint.delete(directory)  # of a save that was cut off: its files must not mix with ours
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self._publish(directory)
        self.accelerator.wait_for_everyone()

    def _publish(self, directory: Path) -> None:
        best = self.state.best_model_checkpoint
        checkpoint.publish(
            directory,
            step=self.state.global_step,
            world_size=self.args.world_size,
            extra={**self.checkpoint_extra, "num_tokens": int(self._total_train_tokens)},
        )
        checkpoint.rotate(directory.parent, keep=self.args.save_total_limit, best=Path(best) if best else None)

    def restore_counters(self, resumed: checkpoint.Checkpoint) -> None:
        """TRL's token counter starts at 0 in every process: take it up where the checkpoint left it."""
        self._total_train_tokens = resumed.extra.get("num_tokens", 0)


def rows_per_step(args: Any) -> int:
    """Packed rows of one optimizer step over all processes."""
    return args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps


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
