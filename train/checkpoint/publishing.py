"""Publishing a checkpoint: its marker and its name, old checkpoints deleted; or a failed save removed and reported."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint import folders
from train.checkpoint.pending_save import Best, Save, is_lasting
from train.run.atomic_files import FileRecord
from train.run.distributed import gather_problems, gather_to_first
from train.run.run_record import keep_saved_step

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

log = logging.getLogger(__name__)


class Publisher:
    """Publishes the checkpoints of a trainer."""

    def __init__(self, trainer: CheckpointedTrainer):
        self.published_step: int | None = None  # of the newest checkpoint of this attempt
        self.best = Best()  # when it was published, or when training began
        self._trainer = trainer
        self._rotation: threading.Thread | None = None

    def publish(self, save: Save, files: dict[str, FileRecord]) -> list[str]:
        """Publish a save whose files are all on disk; what went wrong, if anything. Every process must call it.

        Args:
            files: of all processes; on the first one, what it adds is added.
        """
        written = [gather_to_first(shards.results) for shards in save.shards]
        error = self._publish(save, files, written) if self._trainer.args.process_index == 0 else None
        problems = gather_problems([error] if error else [])
        if not problems:
            self.published_step, self.best = save.step, save.best
        return problems

    def _publish(self, save: Save, files: dict[str, FileRecord], written: list[Any]) -> str | None:
        """On the first process: marker, name, and the old ones away. What went wrong, if anything.

        Args:
            written: of each of the save's shards, each rank's results.
        """
        args = self._trainer.args
        final = folders.run_dir_of(args) / f"checkpoint-{save.step}"
        times = {"save_seconds": round(time.perf_counter() - save.begun, 3), "stall_seconds": round(save.stalled, 3)}
        extra = {**save.extra, **times}
        try:
            for shards, results in zip(save.shards, written, strict=True):
                files |= shards.complete(save.target, results)
            folders.publish(save.target, step=save.step, world_size=args.world_size, extra=extra, files=files)
            folders.give_name(save.target, final)
        except OSError as error:
            return str(error)
        keep_saved_step(final.parent, save.step)
        shutil.rmtree(save.target.parent, ignore_errors=True)
        if args.push_to_hub:
            self._trainer._push_from_checkpoint(str(final))
        self._rotate(final.parent, Path(save.best.path) if save.best.path else None)
        return None

    def _rotate(self, run_dir: Path, best: Path | None) -> None:
        """Delete old checkpoints in the background: on a network file system it takes long."""
        self.wait()
        keep = self._trainer.args.save_total_limit

        def rotate() -> None:
            try:
                folders.rotate(run_dir, keep=keep, best=best)
            except OSError as error:
                log.warning(f"old checkpoints could not be deleted: {error}")

        self._rotation = threading.Thread(target=rotate, name="checkpoint-rotation")
        self._rotation.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until old checkpoints are deleted, or for `seconds`."""
        if self._rotation:
            self._rotation.join(seconds)

    def give_up(self, step: int, problems: list[str], folder: Path) -> None:
        """Remove a failed save and report it, loudly. Every process must call it.

        It is not the best checkpoint: there is no such folder.

        Args:
            problems: why it failed, of all processes.
            folder: `.saving-N`.

        Raises:
            ValueError: it is the first one, and no later one could be saved either: nothing of the run would be left.
        """
        state = self._trainer.state
        if state.best_global_step == step:
            state.best_global_step, state.best_metric = self.best.step, self.best.metric
        if state.best_model_checkpoint and folders.step_of(Path(state.best_model_checkpoint)) == step:
            state.best_model_checkpoint = self.best.path
        if self._trainer.args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
        why = "; ".join(dict.fromkeys(problems))
        if self.published_step is None and state.global_step < state.max_steps and any(map(is_lasting, problems)):
            raise ValueError(f"checkpoint-{step}, the first, cannot be saved, nor could a later one: {why}")
        free = shutil.disk_usage(folder.parent).free / 2**30
        newest = f"checkpoint-{self.published_step}" if self.published_step else "none of this attempt"
        log.warning(
            f"checkpoint-{step} IS NOT SAVED: {why}. Training goes on; the checkpoints before stay (newest: {newest}). "
            f"{folder.parent} has {free:.2f} GiB free"
        )
        self._trainer.accelerator.wait_for_everyone()  # before the same folders are made again
