"""Checkpoints of a trainer: copied in memory, written aside in the background, published when all have finished.

The states are copied into the computer's memory, and training goes on, while a thread of each process writes them with
the libraries' own functions into a folder of its own below `.saving-N`, digests the files, brings them together and
forces them to disk. At the end of the step in which the last one is ready all processes agree that it is, and the first
writes the marker and gives the folder its name. If any process fails, such as for want of space, all agree on that: the
half checkpoint goes, the old ones stay, and training goes on. Where memory is short the states are written at once.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from train import checkpoint, preemption, watchdog
from train.counters import read_counters, write_counters
from train.durable import FileRecord, warning
from train.lead import LeadCheck
from train.resumed_options import apply_options
from train.save_parts import (
    Best,
    Save,
    Writer,
    estimate_size,
    gather,
    intercepting_torch_save,
    rows_per_step,
    wait_for_writers,
)
from train.snapshot import CopyMemory, available_memory
from train.universal import after_loading
from train.world_size import best_loadable, kind_of_states

# Trackers that read `checkpoint-N` as soon as the trainer says that it saved.
_READ_AT_ONCE = frozenset({"mlflow", "clearml", "flyte"})
_SPARE = 1.05  # of the space needed: the last checkpoint's size says the next one's only about
_SPARE_MEMORY = 1.5


class CheckpointSaving(LeadCheck):
    """Mixin before a transformers Trainer. `checkpoint_extra` is what goes into each marker."""

    checkpoint_extra: dict[str, Any]
    published_step: int | None = None  # of the newest checkpoint of this attempt
    _save_now: Save | None = None  # while the Trainer saves
    _save_pending: Save | None = None  # while the background writes
    _rotation: threading.Thread | None = None
    _sizes: tuple[int, int] | None = None  # bytes of the last checkpoint: in all, of this process
    _best_published: Best = Best()
    stop: Any = None  # the callback of train.preemption
    asked_groups: list[dict[str, Any]] | None = None  # see train.resumed_options

    @property
    def preempted(self) -> bool:
        """Whether all processes have agreed to save and stop before the end."""
        return bool(self.stop and self.stop.agreed and self.state.global_step < self.state.max_steps)

    # What the Trainer has.
    args: Any
    state: Any
    model: Any
    accelerator: Any

    def start_saving(self, say: Any, in_background: bool) -> None:
        """Called once, after the Trainer's own __init__, by every process. `say` prints a line on the first one."""
        self.say, self.in_background, self._memory = say, in_background, CopyMemory()
        self.add_callback(SavingCallback(self))  # type: ignore[attr-defined]

    def restore_counters(self, resumed: checkpoint.Checkpoint) -> None:
        """TRL's token counter starts at 0 in every process: take it up where the checkpoint left it; the rest when
        training begins."""
        self._resumed = resumed
        self._total_train_tokens = resumed.extra.get("num_tokens", 0)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._save_now.own) if self._save_now else super()._get_output_dir(trial)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Copy the states, hand over to the background, and go on."""
        begun = time.perf_counter()
        self.finish_save()  # the one before: seldom under way
        save = self._begin_save(begun)
        if save is None:
            return
        self._save_now = save
        try:
            with intercepting_torch_save(save):
                self._save_states(save, model, trial)
        finally:
            self._save_now = None
        save.writer = Writer(save)
        save.writer.start()
        self._save_pending = save
        if self.in_background and not self._is_read_at_once():
            save.stalled = time.perf_counter() - save.begun
        else:
            self.finish_save()
        self._metrics["train"]["save_stall_seconds"].append(save.stalled)  # type: ignore[attr-defined]

    def _is_read_at_once(self) -> bool:
        return "checkpoint" in os.environ.get("WANDB_LOG_MODEL", "") or bool(_READ_AT_ONCE & set(self.args.report_to))

    def _begin_save(self, begun: float) -> Save | None:
        """Folders and space for a save; None if any process says no."""
        step, run_dir = self.state.global_step, Path(self.args.output_dir)
        folder = checkpoint.saving_folder(run_dir, step)
        own = folder / f"process{self.args.process_index}"
        error = self._space_error(run_dir) if self.args.process_index == 0 else None
        if error is None:
            try:
                shutil.rmtree(own, ignore_errors=True)
                (own / f"checkpoint-{step}").mkdir(parents=True)
                (folder / "all").mkdir(parents=True, exist_ok=True)
            except OSError as os_error:
                error = str(os_error)
        answers = gather((error, self.in_background and self._has_memory()))
        if problems := [e for e, _ in answers if e]:
            self._give_up(step, problems, folder)
            return None
        extra = {**self.checkpoint_extra, "num_tokens": int(getattr(self, "_total_train_tokens", 0))}
        extra |= {"rows_per_step": rows_per_step(self.args), **kind_of_states(self)}
        memory = self._memory if all(enough for _, enough in answers) else None
        best = Best(self.state.best_global_step, self.state.best_metric, self._best(run_dir))
        if self.in_background and not memory:
            self.say("a node has too little memory for a copy of the states: training waits while they are written")
        return Save(step, folder / "all", own, extra, best, memory, begun)

    def _save_states(self, save: Save, model: Any, trial: Any) -> None:
        with save.noting():
            try:
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            except OSError as error:  # DeepSpeed's small files, by the first process before the last barrier
                save.errors.append(str(error))
                if self.is_deepspeed_enabled:
                    torch.distributed.barrier()
        with save.noting():
            write_counters(self, save.files_folder)
            self.state.best_model_checkpoint = save.best.path  # the Trainer knows the folder by its passing name
            if self.args.should_save:
                self.state.save_to_json(str(save.files_folder / "trainer_state.json"))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes it before each save, on the first process alone."""
        with warning("the model card is not written"):
            super().create_model_card(*args, **kwargs)  # type: ignore[misc]

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        """Whether this is the best so far. With save_strategy: best that decides about a save, which a preemption needs
        whatever the metric."""
        return super()._determine_best_metric(*args, **kwargs) or self.preempted  # type: ignore[misc]

    def _best(self, run_dir: Path) -> str | None:
        """The path of the best checkpoint; the Trainer would look for the new one before it has its name."""
        step = self.state.best_global_step
        if step and (step == self.state.global_step or (run_dir / f"checkpoint-{step}").is_dir()):
            return str(run_dir / f"checkpoint-{step}")
        return self.state.best_model_checkpoint

    def _space_error(self, run_dir: Path) -> str | None:
        """Whether the run directory has too little space for one more checkpoint, as far as can be known."""
        needed = int((self._sizes[0] if self._sizes else estimate_size(self.model, self.args)) * _SPARE)
        free = shutil.disk_usage(run_dir).free
        if free >= needed:
            return None
        return f"{free / 2**30:.2f} GiB are free in {run_dir}, a checkpoint needs about {needed / 2**30:.2f} GiB"

    def _has_memory(self) -> bool:
        """Whether this node has place for copies of the parts of all its processes."""
        own = self._sizes[1] if self._sizes else estimate_size(self.model, self.args) * 2 / self.args.world_size
        needed = max(0, own - self._memory.size) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return not needed or available_memory() >= needed * _SPARE_MEMORY

    # What only some processes write. An error must not let the others wait in the next collective operation for ever:
    # it is noted, and all learn of it at the end.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save = self._save_now
        if save is None:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        elif self.args.should_save:
            write = super()._save  # type: ignore[misc]
            if state_dict is not None:  # gathered for this save
                save.do_with(lambda states: write(output_dir, states), state_dict)
            elif isinstance(self.model, PreTrainedModel):
                save.do(lambda states: write(output_dir, states), self.model.state_dict())
            else:  # adapters: peft picks them out of the model itself
                with save.noting():
                    write(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        save = self._save_now
        with save.noting() if save else nullcontext():
            super()._save_rng_state(output_dir)  # type: ignore[misc]

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """The hub gets a checkpoint when it is published."""
        if self._save_now is None:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        self.finish_save()
        self.accelerator.wait_for_everyone()
        watchdog.progress()
        with best_loadable(self, self.say) as loadable:
            if loadable:
                super()._load_best_model()  # type: ignore[misc]

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer would delete the newest checkpoint here, if one checkpoint is kept and another is the best. After
        a preemption nothing that takes time comes before the mark, and the best model is not loaded."""
        self.finish_save()
        if self.preempted and self.published_step == self.state.global_step and self.args.process_index == 0:
            preemption.mark(Path(self.args.output_dir), self.state.global_step)
        limit, loads_best = self.args.save_total_limit, self.args.load_best_model_at_end
        self.args.save_total_limit, self.args.load_best_model_at_end = None, loads_best and not self.preempted
        try:
            return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.args.save_total_limit, self.args.load_best_model_at_end = limit, loads_best
            if self._rotation:
                self._rotation.join()

    def poll_save(self) -> None:
        """Publish the checkpoint under way if all processes have written their part. Every process must call it."""
        from train.trainer import all_reduce_max

        save = self._save_pending
        if save and save.writer and not all_reduce_max(save.writer.is_alive(), self.args.device):
            self.finish_save()

    def finish_save(self) -> None:
        """Wait until the checkpoint under way is published or given up. Every process must call it."""
        save, self._save_pending = self._save_pending, None
        if save is None or save.writer is None:
            return
        wait_for_writers(save.writer, self.args.device)
        save.stalled = save.stalled or time.perf_counter() - save.begun
        parts = gather((save.writer.files, save.errors))
        problems = [problem for _, errors in parts for problem in errors]
        files = {name: record for part, _ in parts for name, record in part.items()}
        if not problems:
            error = self._publish(save, files) if self.args.process_index == 0 else None
            problems = [e for e in gather(error) if e]
        if problems:
            self._give_up(save.step, problems, save.target.parent)
            return
        self._sizes = (sum(r.size for r in files.values()), sum(r.size for r in save.writer.files.values()))
        self.published_step, self._best_published = save.step, save.best
        seconds = time.perf_counter() - save.begun
        size = f"{self._sizes[0] / 2**20:,.1f} MiB"
        self.say(
            f"checkpoint-{save.step}: training waited {save.stalled:.2f} s, complete after {seconds:.2f} s, {size}"
        )
        self.check_lead(seconds)

    def _publish(self, save: Save, files: dict[str, FileRecord]) -> str | None:
        """On the first process: marker, name, and the old ones away. What went wrong, if anything."""
        final = Path(self.args.output_dir) / f"checkpoint-{save.step}"
        times = {"save_seconds": round(time.perf_counter() - save.begun, 3), "stall_seconds": round(save.stalled, 3)}
        extra = {**save.extra, **times}
        try:
            checkpoint.publish(save.target, step=save.step, world_size=self.args.world_size, extra=extra, files=files)
            checkpoint.give_name(save.target, final)
        except OSError as error:
            return str(error)
        shutil.rmtree(save.target.parent, ignore_errors=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        self._rotate(final.parent, Path(save.best.path) if save.best.path else None)
        return None

    def _rotate(self, run_dir: Path, best: Path | None) -> None:
        """Delete old checkpoints in the background: on a network file system it takes long."""
        if self._rotation:
            self._rotation.join()
        keep = self.args.save_total_limit

        def rotate() -> None:
            try:
                checkpoint.rotate(run_dir, keep=keep, best=best)
            except OSError as error:
                self.say(f"WARNING: old checkpoints could not be deleted: {error}")

        self._rotation = threading.Thread(target=rotate, name="checkpoint-rotation")
        self._rotation.start()

    def _give_up(self, step: int, problems: list[str], folder: Path) -> None:
        """Remove the half checkpoint and say so, loudly. It is not the best one: there is no such folder."""
        if self.state.best_global_step == step:
            best = self._best_published
            self.state.best_global_step, self.state.best_metric = best.step, best.metric
            self.state.best_model_checkpoint = best.path
        if self.args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free / 2**30
        newest = f"checkpoint-{self.published_step}" if self.published_step else "none of this attempt"
        self.say(
            f"WARNING: checkpoint-{step} IS NOT SAVED: {'; '.join(dict.fromkeys(problems))}. Training goes on; the "
            f"checkpoints before stay (newest: {newest}). {folder.parent} has {free:.2f} GiB free"
        )
        self.accelerator.wait_for_everyone()  # before the same folders are made again


class SavingCallback(TrainerCallback):
    """Publishes in the step in which all processes are ready, and restores what the Trainer forgets."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.begun: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the Trainer has set its counters to 0 and loaded all states."""
        self.trainer._best_published = Best(state.best_global_step, state.best_metric, state.best_model_checkpoint)
        if self.trainer._resumed:
            read_counters(self.trainer, self.trainer._resumed)
            after_loading(self.trainer)
            apply_options(self.trainer, self.trainer.say)
            self.trainer.accelerator.wait_for_everyone()
            if args.process_index == 0:
                checkpoint.clean(Path(args.output_dir), checkpoint.UNIVERSAL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One small collective operation, and only while a save is under way."""
        now = time.perf_counter()
        if self.begun is not None:
            self.trainer.longest_step = max(self.trainer.longest_step, now - self.begun)
        self.begun = now
        self.trainer.poll_save()
