"""Saving checkpoints: states copied in memory, written in the background, published when all ranks are ready.

The states are copied into host memory, and training goes on, while a thread of each process writes them with
the libraries' own functions into a folder of its own below `.saving-N`, digests the files, brings them together and
forces them to disk. At the end of the step in which the last one is ready all processes agree that it is, and the first
writes the marker and gives the folder its name. If any process fails, such as for want of space, all agree on that:
the half checkpoint goes, the old ones stay. Where memory is short the states are written at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from train.checkpoint import capacity, folders
from train.checkpoint.best_saved import best_saved
from train.checkpoint.deepspeed_universal import after_loading
from train.checkpoint.folders import Checkpoint
from train.checkpoint.fsdp_states import taking_shards
from train.checkpoint.grace_period import GracePeriodCheck
from train.checkpoint.host_copies import CopyMemory
from train.checkpoint.logging_sums import read_counters, write_counters
from train.checkpoint.pending_save import Best, Save, Writer, intercepting_torch_save, make_folders, wait_for_writers
from train.checkpoint.publishing import Publisher
from train.checkpoint.resumed_options import apply_options
from train.checkpoint.size_estimates import estimate_size, own_part
from train.checkpoint.world_size import best_loadable, kind_of_states
from train.config.steps import rows_per_step_of
from train.run import preemption, watchdog
from train.run.distributed import all_reduce_max, gather, gather_problems

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer, Counter
    from train.run.preemption_callback import PreemptionCallback

log = logging.getLogger(__name__)

_PREEMPTED = 2.0  # seconds that a preempted run waits for deletions; the end of the process waits for them again
# Trackers that read `checkpoint-N` as soon as the trainer says that it saved.
_READ_AT_ONCE = frozenset({"mlflow", "clearml", "flyte"})


class Checkpointer:
    """Saves and publishes the checkpoints of a trainer, which calls it from the methods that it overrides.

    Args:
        in_background: whether training goes on while the states are written.
        stop: the callback that ends the training at a signal, if there is one.
        extra: what goes into each marker next to step and world size.
        counters: whose states go into each marker as well, by name.
    """

    def __init__(
        self,
        trainer: CheckpointedTrainer,
        *,
        in_background: bool,
        stop: PreemptionCallback | None,
        extra: dict[str, Any],
        counters: Mapping[str, Counter],
    ):
        self.extra = extra
        self.publisher, self.grace_period = Publisher(trainer), GracePeriodCheck(trainer)
        self.asked_groups: list[dict[str, Any]] | None = None  # see train.checkpoint.resumed_options
        self._trainer, self._in_background = trainer, in_background
        self._stop, self._counters = stop, counters
        self._memory = CopyMemory()
        self._resumed: Checkpoint | None = None
        self._current: Save | None = None  # while the Trainer saves
        self._pending: Save | None = None  # while the background writes
        self._sizes: tuple[int, int] | None = None  # bytes of the last checkpoint: in all, of this process
        trainer.add_callback(SavingCallback(self))

    @property
    def preempted(self) -> bool:
        """Whether all processes have agreed to save and stop before the end."""
        state = self._trainer.state
        return self._stop is not None and self._stop.agreed and state.global_step < state.max_steps

    @property
    def interrupted(self) -> bool:
        """Whether it was Ctrl-C: nobody shall start the run again but the user."""
        return bool(self._stop and self.preempted and self._stop.interrupted)

    @property
    def run_dir(self) -> Path:
        """Where the checkpoints lie."""
        return folders.run_dir_of(self._trainer.args)

    # Resume.

    def resume(self, found: Checkpoint) -> None:
        """Take up the counters where a checkpoint left them, before training; the rest follows when it begins.

        TRL's counter of tokens starts at 0 in every process.
        """
        self._resumed = found
        self._trainer._total_train_tokens = found.extra.get("num_tokens", 0)
        for name, counter in self._counters.items():
            counter.restore(found.extra.get(name, {}))

    def begin_training(self) -> None:
        """Restore what the Trainer forgets, once it has set its counters to 0 and loaded all states."""
        trainer, state = self._trainer, self._trainer.state
        self.publisher.best = Best(state.best_global_step, state.best_metric, state.best_model_checkpoint)
        if self._resumed is None:
            return
        read_counters(trainer, self._resumed)
        after_loading(trainer)
        apply_options(trainer, self.asked_groups)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.process_index == 0:
            folders.clean(self.run_dir, folders.UNIVERSAL)

    # One save.

    def save(self, write: Callable[[], None]) -> None:
        """Copy the states, hand over to the background, and go on. Every process must call it.

        Args:
            write: the Trainer's own way to save.
        """
        begun = time.perf_counter()
        self.extra |= {name: counter.state() for name, counter in self._counters.items()}
        self.finish()  # the one before: seldom under way
        save = self._begin(begun)
        if save is None:
            return
        self._current = save
        try:
            with intercepting_torch_save(save), taking_shards(save, self._trainer):
                self._save_states(save, write)
        finally:
            self._current = None
        save.writer = Writer(save)
        save.writer.start()
        self._pending = save
        if self._in_background and not self._is_read_at_once():
            save.stalled = time.perf_counter() - save.begun
        else:
            self.finish()
        self._trainer._metrics["train"]["save_stall_seconds"].append(save.stalled)

    def _is_read_at_once(self) -> bool:
        reports = _READ_AT_ONCE & set(self._trainer.args.report_to or ())
        return "checkpoint" in os.environ.get("WANDB_LOG_MODEL", "") or bool(reports)

    def _begin(self, begun: float) -> Save | None:
        """Folders, space and memory for a save; None if any process lacks folders or space."""
        args, step = self._trainer.args, self._trainer.state.global_step
        folder = folders.saving_folder(self.run_dir, step)
        own = folder / f"process{args.process_index}"
        error = self._space_shortage() if args.process_index == 0 else None
        error = error or make_folders(folder / "all", own, step)
        shortage = self._memory_shortage() if self._in_background else "not asked for"
        if problems := gather_problems([error] if error else []):
            self.publisher.give_up(step, problems, folder)
            return None
        short = next((found for found in gather(shortage) if found), None)
        if self._in_background and short:
            log.info(f"too little memory for a copy of the states: {short}. Training waits while they are written")
        memory = None if short else self._memory
        return Save(step, folder / "all", own, self._marker_extra(), self._best(), memory, begun)

    def _marker_extra(self) -> dict[str, Any]:
        """What goes into the marker of this save next to step and world size."""
        tokens = int(getattr(self._trainer, "_total_train_tokens", 0))
        rows = rows_per_step_of(self._trainer.args, self.extra.get("sequence_parallel", 1))
        return {**self.extra, "num_tokens": tokens, "rows_per_step": rows, **kind_of_states(self._trainer)}

    def _best(self) -> Best:
        """The best evaluation, and the best checkpoint."""
        state = self._trainer.state
        path = best_saved(self._trainer.args, state, self.run_dir)
        return Best(state.best_global_step, state.best_metric, path)

    def _space_shortage(self) -> str | None:
        """What the run directory lacks for one more checkpoint, as far as can be known."""
        size = self._sizes[0] if self._sizes else estimate_size(self._trainer.model, self._trainer.args)
        return capacity.space_shortage(self.run_dir, size)

    def _memory_shortage(self) -> str | None:
        """What this node lacks for copies of the parts of all its processes."""
        args = self._trainer.args
        own = self._sizes[1] if self._sizes else own_part(self._trainer)
        return capacity.memory_shortage(own, self._memory.size, args.device)

    def _save_states(self, save: Save, write: Callable[[], None]) -> None:
        trainer = self._trainer
        with save.noting():
            try:
                write()
            except OSError as error:  # DeepSpeed's small files, by the first process before the last barrier
                save.errors.append(str(error))
                if trainer.is_deepspeed_enabled:
                    torch.distributed.barrier()
        with save.noting():
            write_counters(trainer, save.files_folder)
            trainer.state.best_model_checkpoint = save.best.path  # the Trainer knows the folder by its passing name
            if trainer.args.should_save:
                trainer.state.save_to_json(str(save.files_folder / "trainer_state.json"))

    # Called while the Trainer saves. What only some processes write must not let the others wait in the next collective
    # operation for ever: an error is noted, and all learn of it at the end.

    @property
    def folder(self) -> str | None:
        """What the Trainer is to take for the run directory while it saves a checkpoint, else None."""
        return str(self._current.own) if self._current else None

    def noting(self) -> AbstractContextManager[None]:
        """Note an error of the save instead of raising it; while nothing is saved, errors are raised."""
        return self._current.noting() if self._current else nullcontext()

    def save_model(
        self, write: Callable[..., None], output_dir: str | None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write the model with the Trainer's `write(output_dir, state_dict)`: of a checkpoint, in the background."""
        save, model = self._current, self._trainer.model
        if save is None:
            write(output_dir, state_dict)
        elif not self._trainer.args.should_save:
            return
        elif state_dict is not None:  # gathered for this save; empty where the weights are saved in shards
            save.do_with(lambda states: write(output_dir, states), state_dict)
        elif isinstance(model, PreTrainedModel):
            save.do(lambda states: write(output_dir, states), model.state_dict())
        else:  # adapters: peft picks them out of the model itself
            with save.noting():
                write(output_dir)

    # Publication.

    def poll(self) -> None:
        """Publish the checkpoint under way if all processes have written their part. Every process must call it."""
        save = self._pending
        if save and save.writer and not all_reduce_max(save.writer.is_alive(), self._trainer.args.device):
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint under way is published or given up. Every process must call it."""
        save, self._pending = self._pending, None
        if save is None or save.writer is None:
            return
        wait_for_writers(save.writer, self._trainer.args.device)
        save.stalled = save.stalled or time.perf_counter() - save.begun
        files = {name: record for part in gather(save.writer.files) for name, record in part.items()}
        problems = gather_problems(save.errors) or self.publisher.publish(save, files)
        if problems:
            self.publisher.give_up(save.step, problems, save.target.parent)
            return
        self._sizes = (sum(r.size for r in files.values()), sum(r.size for r in save.writer.files.values()))
        self._report(save, self._sizes[0])

    def _report(self, save: Save, size: int) -> None:
        """Say what a published checkpoint has cost."""
        seconds = time.perf_counter() - save.begun
        sizes = f"{size / 2**20:,.1f} MiB"
        if save.memory:
            sizes += f" ({self._memory.size / 2**20:,.1f} MiB of memory for copies on the first process)"
        log.info(
            f"checkpoint-{save.step}: training waited {save.stalled:.2f} s, complete after {seconds:.2f} s, {sizes}"
        )
        self.grace_period.check(seconds)

    # The end of training.

    def load_best(self, load: Callable[[], None]) -> None:
        """Load the best checkpoint with the Trainer's `load`, if this launch can. Every process must call it."""
        self.finish()
        self._trainer.accelerator.wait_for_everyone()
        watchdog.progress()
        with best_loadable(self._trainer) as loadable:
            if loadable:
                load()

    def end_training(self, finalize: Callable[[], Any]) -> Any:
        """Publish what is under way, then call the Trainer's `finalize`; what that returns.

        The Trainer would delete the newest checkpoint here, if one checkpoint is kept and another is the best. After a
        preemption nothing that takes time comes before the mark, and the best model is not loaded.
        """
        self.finish()
        args, step = self._trainer.args, self._trainer.state.global_step
        if self._stop and self._stop.agreed:
            self._stop.agree_on_interrupt()
        if self.preempted and not self.interrupted and self.publisher.published_step == step and not args.process_index:
            preemption.mark(self.run_dir, step)
        limit, loads_best = args.save_total_limit, args.load_best_model_at_end
        args.save_total_limit, args.load_best_model_at_end = None, loads_best and not self.preempted
        try:
            return finalize()
        finally:
            args.save_total_limit, args.load_best_model_at_end = limit, loads_best
            self.publisher.wait(_PREEMPTED if self.preempted else None)


class SavingCallback(TrainerCallback):
    """Publishes in the step in which all processes are ready, and restores what the Trainer forgets."""

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer = checkpointer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """After the Trainer has set its counters to 0 and loaded all states."""
        self._checkpointer.begin_training()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One small collective operation, and only while a save is under way."""
        self._checkpointer.grace_period.end_step()
        self._checkpointer.poll()
