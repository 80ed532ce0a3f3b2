"""TRL's SFTTrainer with what it lacks: token-weighted evaluation and checkpoints that are complete or not there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from train import durable, run_record
from train.checkpoint import Checkpoint
from train.data import BATCH_EXTRAS, SourceCollator
from train.data_position import DataPosition
from train.evaluation import metrics_by_source, sum_by_source
from train.guard import BadStepError, StepGuard
from train.monitoring import Meter, document_sums
from train.resumed_options import asked_groups
from train.samples import Sampler
from train.save_parts import rows_per_step
from train.saving import CheckpointSaving
from train.throughput import model_flops, peak_flops


class PackedSFTTrainer(CheckpointSaving, DataPosition, SFTTrainer):
    """SFTTrainer over packed rows with a `sources` column.

    Args:
        source_names: the manifest's sources, in order.
        checkpoint_extra: what goes into each checkpoint's marker beside step and world size.
        shards: (name, rows) of the training split's shards, in order.
        on_bad_step, spike_sigma: see train.guard.
        baseline: the base model's evaluation losses, of an earlier start.
        sampler: answers held-out prompts at each evaluation.
    """

    args: Any  # SFTConfig; the base class knows it as TrainingArguments
    model: Any
    optimizer: Any

    def __init__(
        self,
        *args: Any,
        source_names: list[str],
        checkpoint_extra: dict[str, Any],
        shards: list[tuple[str, int]] | None = None,
        on_bad_step: str = "stop",
        spike_sigma: float | None = None,
        baseline: dict[str, float] | None = None,
        sampler: Sampler | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.source_names = source_names
        self.checkpoint_extra = checkpoint_extra
        self.baseline, self.sampler = baseline or {}, sampler
        self.data_collator = SourceCollator(self.data_collator)
        self._own_loss = _computes_plain_loss(self)
        if self._own_loss:  # without the entropy, which is only a metric
            base = self.model.get_base_model() if is_peft_model(self.model) else self.model
            add_fused_lm_head(base, outputs=("log_probs", "is_top1"))
        device = self.accelerator.device
        replicas = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        peak = peak_flops(device, multiplied_in(self.args, self.model))
        self.meter = Meter(source_names, model_flops(self.model), peak, device, replicas)
        self.guard = StepGuard(
            on_bad_step,
            spike_sigma,
            scaled=self.args.fp16,
            run_dir=Path(self.args.output_dir),
            source_names=source_names,
            shards=shards or [],
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; what the run config says of it is noted before a checkpoint's states are loaded."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self.asked_groups = asked_groups(optimizer)
        return optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The step's batches; a step begins here."""
        self.meter.begin_step()
        self._loss_before = self._tr_loss.clone()
        return super().get_batch_samples(self.meter.waiting(epoch_iterator), num_batches, device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss without TRL's metrics, which cost four gathers and three syncs with the device for each
        micro-batch; ours stay on the device."""
        columns = {name: inputs.pop(name, None) for name in BATCH_EXTRAS}
        if self.get_sp_size() > 1:  # each process holds a part of the row: TRL's metrics know how to count
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._own_loss:
            loss, outputs = self._plain_loss(model, inputs, num_items_in_batch)
        else:
            loss, outputs = self._trl_loss(model, inputs, num_items_in_batch)
        batch = {**inputs, **{name: column for name, column in columns.items() if column is not None}}
        sums = document_sums(outputs, batch)
        self.meter.add(sums, batch)
        return self.guard.watch(loss, sums, batch, last=self.accelerator.sync_gradients)

    def _plain_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: torch.Tensor) -> tuple[Any, Any]:
        """The negative log-likelihood or DFT loss, as `SFTTrainer.compute_loss` of TRL 1.16 computes it."""
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        outputs = model(**inputs, fused_lm_head=True)
        per_token = -outputs.log_probs
        if self.args.loss_type == "dft":
            per_token = per_token * outputs.log_probs.exp().detach()
        loss = per_token.sum() / num_items_in_batch.clamp(min=1)
        loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # DDP averages the gradients
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss, outputs

    def _trl_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Any, Any]:
        """TRL's own loss, with the outputs of its forward through the fused head."""
        fused = []

        def forward(**arguments: Any) -> Any:
            outputs = model(**arguments)
            if arguments.get("fused_lm_head"):
                fused.append(outputs)
            return outputs

        loss = super().compute_loss(forward, inputs, num_items_in_batch=num_items_in_batch)
        return loss, fused[-1]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of a micro-batch but for attention; transformers' own counts all parameters each time."""
        flops = self.meter.flops
        return inputs["input_ids"].numel() * (flops.per_token + flops.per_trained_token)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm; a bad step is dropped here, between the gradients and the optimizer."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        try:
            skipped = self.guard.end_step(self.state.global_step + 1, grad_norm)
        except BadStepError:  # on all processes alike
            self.finish_save()  # a checkpoint under way is of good steps
            raise
        self._mark_skipped(skipped)
        self.meter.end_step(skipped=skipped)
        return grad_norm

    def _mark_skipped(self, skipped: bool) -> None:
        """Keep a skipped step from the weights, the optimizer, the schedule and the logged loss."""
        if not self.is_deepspeed_enabled and not self.args.fp16:  # those discard it by themselves
            self.optimizer._is_overflow = skipped  # accelerate's word for it: the schedule stays where it is
            if skipped:
                self.optimizer.zero_grad()
        if not skipped:
            return
        if self.is_deepspeed_enabled and not self.accelerator.optimizer_step_was_skipped:
            raise BadStepError("DeepSpeed applied a step whose gradients are not finite: set check_grad_overflow")
        self._tr_loss.copy_(self._loss_before)
        self._globalstep_last_logged += 1  # the mean is over the steps that count

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Gather what the steps told before anything reads it."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.meter.gather(self.accelerator)
            self._total_train_tokens = self.meter.num_tokens
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._globalstep_last_logged == self.state.global_step:
            self._tr_loss.zero_()  # the Trainer takes it from itself, which leaves a NaN as it is

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The metrics of the README in the place of TRL's."""
        if "loss" in logs and self.get_sp_size() == 1:
            for name in ("entropy", "mean_token_accuracy", "num_tokens"):
                self._metrics["train"].pop(name, None)
            logs |= self.meter.report(self.state.max_steps - self.state.global_step)
            if self.guard.skipped:
                logs["skipped_steps"] = self.guard.skipped
        super().log(logs, start_time)

    def _evaluated(self, dataloader: Any) -> Iterator[dict[str, Any]]:
        """The batches; callbacks hear of each, as in the loop that is replaced."""
        for batch in dataloader:
            yield self._prepare_inputs(batch)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

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
        batches = self._evaluated(dataloader)
        sums = sum_by_source(model, batches, len(self.source_names), self.accelerator)
        metrics = metrics_by_source(sums, self.source_names, metric_key_prefix)
        if self.is_in_train:
            metrics |= self._compare_with_base(metrics)
            if self.sampler is not None:
                self.log_samples(self.sampler(self.model, self.state.global_step))
        count = len(dataloader.dataset)
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=count)

    def _compare_with_base(self, metrics: dict[str, float]) -> dict[str, float]:
        """How far each loss is from the base model's: above 0, the model has forgotten."""
        if self.state.global_step == 0:
            self.baseline = {name: value for name, value in metrics.items() if name.endswith("_loss")}
            if self.is_world_process_zero():
                with durable.warning("the base model's losses are not kept for the next start"):
                    run_record.keep_baseline(Path(self.args.output_dir), self.baseline)
        return {f"{name}_change": metrics[name] - base for name, base in self.baseline.items() if name in metrics}

    def log_samples(self, rows: list[dict[str, Any]]) -> None:
        """To every callback that takes tables."""
        for callback in self.callback_handler.callbacks:
            if self.is_world_process_zero() and hasattr(callback, "log_samples"):
                callback.log_samples(rows)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """With what the meter and the guard know, after anything that was logged in this step."""
        self.checkpoint_extra |= {"guard": self.guard.state(), "meter": self.meter.state()}
        super()._save_checkpoint(model, trial)

    def restore_counters(self, resumed: Checkpoint) -> None:
        """Also what the meter and the guard know."""
        super().restore_counters(resumed)
        self.meter.restore(resumed.extra.get("meter", {}))
        self.guard.restore(resumed.extra.get("guard", {}))


def _computes_plain_loss(trainer: SFTTrainer) -> bool:
    """Whether the loss is a sum over tokens of what the fused head gives; label smoothing needs all logits."""
    smoothed = trainer.label_smoother is not None and trainer.args.loss_type == "nll"  # type: ignore[attr-defined]
    counted = trainer.model_accepts_loss_kwargs  # else the Trainer gives no number of tokens to divide by
    return counted and trainer.compute_loss_func is None and not smoothed and trainer.get_sp_size() == 1


def multiplied_in(args: Any, model: Any) -> str:
    """The dtype that matrices are multiplied in, such as "bfloat16"."""
    mixed = {"bf16": args.bf16, "fp16": args.fp16}
    names = {"bf16": "bfloat16", "fp16": "float16"}
    return next((names[name] for name, on in mixed.items() if on), str(model.dtype).removeprefix("torch."))


def steps_per_epoch(num_rows: int, args: Any) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(num_rows / rows_per_step(args))


def steps_in_all(num_rows: int, args: Any) -> int:
    """Optimizer steps of the whole run, as the Trainer counts them."""
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch(num_rows, args))


def is_main(args: Any) -> bool:
    """Whether this process is the first of the world."""
    return args.process_index == 0


def all_reduce_max(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process. Every process must call it."""
    value = torch.tensor([int(flag)], device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())
