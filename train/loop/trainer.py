"""The trainer: TRL's SFTTrainer with our loss, metrics, evaluation and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from train.checkpoint import fsdp_states
from train.checkpoint.folders import run_dir_of
from train.checkpoint.resumed_options import asked_groups
from train.checkpoint.saving import Checkpointer
from train.checkpoint.tied_weights import drop_copies
from train.loop.bad_steps import BadStepError, StepGuard
from train.loop.balancing import BalancingShare
from train.loop.computing import Computing
from train.loop.data import BATCH_EXTRAS, SourceCollator
from train.loop.data_position import is_over, skipping_at_once
from train.loop.evaluation import evaluation_metrics, sum_by_source
from train.loop.metrics import Meter, document_sums
from train.loop.plain_loss import check_parts_suffice, computes_plain_loss
from train.loop.row_parts import RowParts
from train.loop.sample_answers import Sampler
from train.loop.throughput import model_flops, multiplied_in, peak_flops
from train.model import documentwise, fsdp, lora_inputs
from train.model.compiling import eagerly
from train.run import atomic_files, run_record, watchdog
from train.run.preemption_callback import PreemptionCallback


class PackedSFTTrainer(RowParts, Computing, SFTTrainer):
    """SFTTrainer over packed rows with a `sources` column.

    Args:
        source_names: the manifest's sources, in order.
        checkpoint_extra: what goes into each checkpoint's marker, next to step and world size.
        save_in_background: whether training goes on while a checkpoint is written.
        stop: saves and stops at a signal; it must be one of the callbacks.
        shards: (name, rows) of the training split's shards, in order.
        on_bad_step, spike_sigma: see train.loop.bad_steps.
        baseline: the base model's evaluation losses, of an earlier start.
        sampler: answers held-out prompts at each evaluation.
        sequence_parallel: number of consecutive ranks that hold parts of the same rows.
    """

    args: SFTConfig  # the base class knows it as TrainingArguments
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
        save_in_background: bool = True,
        stop: PreemptionCallback | None = None,
        sequence_parallel: int = 1,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.source_names = source_names
        self.baseline, self.sampler, self.stop = baseline or {}, sampler, stop
        part = self.share_rows(sequence_parallel)
        self.data_collator = SourceCollator(self.data_collator, part)
        self._own_loss = computes_plain_loss(self)
        check_parts_suffice(self, sequence_parallel)
        if self._own_loss:  # without the entropy, which is only a metric
            base = self.model.get_base_model() if is_peft_model(self.model) else self.model
            add_fused_lm_head(base, outputs=("log_probs", "is_top1"))
        device = self.accelerator.device
        if is_peft_model(self.model) and self.accelerator.native_amp:
            lora_inputs.leave_as_they_are(self.model, device)
        peak = peak_flops(device, multiplied_in(self.args, self.model))
        self.balancing = BalancingShare(self.accelerator)
        self.meter = Meter(source_names, model_flops(self.model), peak, device, part.size)
        self.guard = StepGuard(
            on_bad_step,
            spike_sigma,
            scaled=self.args.fp16,
            run_dir=run_dir_of(self.args),
            source_names=source_names,
            shards=shards or [],
            pace=self.meter.pace,
            row_group=self.row_group,
        )
        counters: dict[str, Any] = {"guard": self.guard, "meter": self.meter}
        self.checkpointer = Checkpointer(
            self, in_background=save_in_background, stop=stop, extra=checkpoint_extra, counters=counters
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; notes what the run config asks of it, before a checkpoint's states are loaded."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self.checkpointer.asked_groups = asked_groups(optimizer)
        return optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """The step's batches; a step begins here."""
        watchdog.enter("step", self.state.global_step + 1)
        self.meter.begin_step()
        self._loss_before = self._tr_loss.clone()
        batches = super().get_batch_samples(self.meter.waiting(epoch_iterator), num_batches, device)
        if self.aux_loss_enabled:
            self.balancing.begin_step(batches[0])
        self.meter.pace.begin("forward")
        return batches

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss without TRL's metrics, which cost four gathers and three syncs with the device for each
        micro-batch; ours stay on the device."""
        self.meter.pace.begin("forward")
        columns = {name: inputs.pop(name, None) for name in BATCH_EXTRAS}
        documentwise.expect(self.model, columns["document_lengths"])
        if self._own_loss:
            loss, outputs = self._plain_loss(model, inputs, num_items_in_batch)
        else:
            loss, outputs = self._trl_loss(model, inputs, num_items_in_batch)
        batch = {**inputs, **{name: column for name, column in columns.items() if column is not None}}
        sums = document_sums(outputs, batch)
        self.meter.add(sums, batch)
        signalled = self.stop is not None and self.stop.signals.first() is not None
        loss = self.guard.watch(loss, sums, batch, last=self.accelerator.sync_gradients, signalled=signalled)
        self.meter.pace.begin("backward")
        return loss

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
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss * self.balancing.of(inputs)
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
        self.meter.pace.end_step()
        grad_norm = fsdp.whole(super()._get_grad_norm(model, grad_norm))
        try:
            skipped = self.guard.end_step(self.state.global_step + 1, grad_norm)
        except BadStepError:  # on all processes alike
            self.checkpointer.finish()  # a checkpoint under way is of good steps
            raise
        if self.stop:
            self.stop.told = self.guard.signalled
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
        """Gather the steps' metrics before anything reads them."""
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.meter.gather(self.accelerator)
            self._total_train_tokens = self.meter.num_tokens
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._globalstep_last_logged == self.state.global_step:
            self._tr_loss.zero_()  # the Trainer takes it from itself, which leaves a NaN as it is

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """The metrics of docs/training.md, instead of TRL's."""
        if "loss" in logs:
            for name in ("entropy", "mean_token_accuracy", "num_tokens"):
                self._metrics["train"].pop(name, None)
            logs |= self.meter.report(self.state.max_steps - self.state.global_step)
            if self.guard.skipped:
                logs["skipped_steps"] = self.guard.skipped
        super().log(logs, start_time)

    def _evaluated(self, dataloader: Any) -> Iterator[dict[str, Any]]:
        """The batches; callbacks are called for each, as in the loop that this replaces."""
        for batch in dataloader:
            documentwise.expect(self.model, batch.get("document_lengths"))
            yield self._prepare_inputs(batch)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            watchdog.progress()

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Replaces the mean over batches by the mean over tokens."""
        if not self.is_in_train and self.is_deepspeed_enabled and self.deepspeed is None:
            raise ValueError(
                "evaluate() before train() is not supported under DeepSpeed: set eval_on_start=True instead"
            )
        watchdog.enter("evaluation", self.state.global_step)
        model = self._wrap_model(self.model, training=False)
        model.eval()
        batches = self._evaluated(dataloader)
        sums = sum_by_source(model, batches, len(self.source_names), self.accelerator)
        metrics = evaluation_metrics(sums, self.source_names, metric_key_prefix)
        if self.is_in_train:
            metrics |= self._compare_with_base(metrics)
            if self.sampler is not None:
                self.log_samples(self._samples(self.sampler))
        return EvalLoopOutput(np.empty(0), label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _compare_with_base(self, metrics: dict[str, float]) -> dict[str, float]:
        """How far each loss is from the base model's: above 0, the model has forgotten."""
        if self.state.global_step == 0:
            self.baseline = {name: value for name, value in metrics.items() if name.endswith("_loss")}
            if self.is_world_process_zero():
                with atomic_files.warning("the base model's losses are not kept for the next start"):
                    run_record.keep_baseline(run_dir_of(self.args), self.baseline)
        return {f"{name}_change": metrics[name] - base for name, base in self.baseline.items() if name in metrics}

    def _samples(self, sampler: Sampler) -> list[dict[str, Any]]:
        """In the precision of training: generation calls the layers past the forward pass that accelerate wraps."""
        with eagerly(self.accelerator.state.dynamo_plugin), self.accelerator.autocast():
            return sampler(self.model, self.state.global_step)

    def log_samples(self, rows: list[dict[str, Any]]) -> None:
        """To every callback that takes tables."""
        for callback in self.callback_handler.callbacks:
            if self.is_world_process_zero() and hasattr(callback, "log_samples"):
                callback.log_samples(rows)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """No batch of a step done is made again, and a run at its end makes no step more."""
        if is_over(self):
            self.control.should_training_stop = True
            return None
        with skipping_at_once():
            return super()._run_epoch(*args, **kwargs)

    # Checkpoints: what the Trainer does itself, as train.checkpoint.saving wants it.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        watchdog.enter("save", self.state.global_step)
        self.checkpointer.save(partial(super()._save_checkpoint, model, trial))

    def _get_output_dir(self, trial: Any) -> str:
        return self.checkpointer.folder or super()._get_output_dir(trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's; ours where the states are sharded, of which it writes no model."""
        if fsdp_states.is_sharded(self):
            fsdp_states.save_model(self, output_dir, in_checkpoint=_internal_call)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict:  # gathered, and so cloned: a tied head would be written twice
            drop_copies(state_dict, self.model)
        self.checkpointer.save_model(super()._save, output_dir, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        with self.checkpointer.noting():
            super()._save_rng_state(output_dir)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The hub gets a checkpoint when it is published."""
        if self.checkpointer.folder is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _load_best_model(self) -> None:
        self.checkpointer.load_best(super()._load_best_model)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        return self.checkpointer.end_training(partial(super()._finalize_training, *args, **kwargs))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes it before each save, on the first process alone."""
        with atomic_files.warning("the model card is not written"):
            super().create_model_card(*args, **kwargs)

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Whether this is the best so far. With save_strategy: best that decides about a save, which a preemption needs
        whatever the metric."""
        return super()._determine_best_metric(*args, **kwargs) or self.checkpointer.preempted
