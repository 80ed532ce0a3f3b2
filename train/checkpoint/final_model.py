"""The final model of a run: written into the run directory and published there; on a full disk, tried again."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint import folders
from train.checkpoint.pending_save import is_lasting
from train.config.steps import rows_per_step_of
from train.run import watchdog
from train.run.distributed import gather, gather_problems, is_first
from train.run.preemption import Signals
from train.run.run_record import keep_saved_step

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

log = logging.getLogger(__name__)

BETWEEN_TRIES = 30.0  # seconds
_JOB = "SLURM_JOB_ID"  # where it is set, nobody sits at a terminal who would make space and start again
_WEIGHTS = ("model*.safetensors*", "adapter_model*.safetensors*")


def save_final_model(trainer: CheckpointedTrainer, run_dir: Path, extra: dict[str, Any], signals: Signals) -> None:
    """Save the model at the top of the run directory, and the marker last. Every process must call it.

    In a job, a save that fails for lack of space, or for another reason that may pass, is tried again until it succeeds
    or a signal comes.

    Args:
        extra: what the checkpoints' markers hold as well, and the options that decide what the model is.
        signals: those that this process has got.

    Raises:
        ValueError: it could not be written; says which checkpoint holds the state.
    """
    if is_first():
        folders.withdraw(run_dir)  # of an earlier end: the files are about to be replaced
    trainer.accelerator.wait_for_everyone()
    while problem := _try_to_save(trainer, run_dir, extra):
        stopped = any(gather(signals.first() is not None))
        if stopped or is_lasting(problem) or _JOB not in os.environ:
            raise ValueError(_advice(trainer, run_dir, problem))
        log.warning(f"the final model IS NOT SAVED: {problem}. Trying again until there is space or the job ends")
        _wait(signals)


def _try_to_save(trainer: CheckpointedTrainer, run_dir: Path, extra: dict[str, Any]) -> str | None:
    """What went wrong on any process, or None."""
    error = None
    try:
        trainer.save_model()
    except Exception as reason:  # safetensors has an error of its own for a full disk
        error = f"{type(reason).__name__}: {reason}"
    found = _first_of_all(error)
    if found is None:
        found = _first_of_all(_publish(trainer, run_dir, extra) if is_first() else None)
    if found and is_first():
        _remove_weights(run_dir)
    return found


def _first_of_all(error: str | None) -> str | None:
    """The first rank's error that there is. Every process must call it."""
    return next(iter(gather_problems([error] if error else [])), None)


def _publish(trainer: CheckpointedTrainer, run_dir: Path, extra: dict[str, Any]) -> str | None:
    """Write the trainer's state and the marker; what went wrong, or None."""
    state = trainer.state
    rows = rows_per_step_of(trainer.args, extra.get("sequence_parallel", 1))
    extra = {**extra, "max_steps": state.max_steps, "rows_per_step": rows}
    try:
        state.save_to_json(str(run_dir / "trainer_state.json"))
        folders.publish(run_dir, step=state.global_step, world_size=trainer.args.world_size, extra=extra)
    except OSError as reason:
        return str(reason)
    keep_saved_step(run_dir, state.global_step)
    return None


def _remove_weights(run_dir: Path) -> None:
    """Give back the space of a save that was cut off."""
    for pattern in _WEIGHTS:
        for file in run_dir.glob(pattern):
            file.unlink(missing_ok=True)


def _wait(signals: Signals) -> None:
    """Until the next try, or a signal on this process. A process that waits here is not taken for one that hangs."""
    end = time.monotonic() + BETWEEN_TRIES
    while time.monotonic() < end and signals.first() is None:
        time.sleep(min(1.0, BETWEEN_TRIES))
    watchdog.progress()


def _advice(trainer: CheckpointedTrainer, run_dir: Path, problem: str) -> str:
    kept = folders.find_checkpoints(run_dir)
    state = f"{kept[-1].path.name} holds the state" if kept else "there is no checkpoint"
    remedy = "change what it names" if is_lasting(problem) else "make space"
    free = shutil.disk_usage(run_dir).free / 2**30
    return (
        f"the final model of step {trainer.state.global_step} could not be saved: {problem}. {run_dir} has {free:.2f} "
        f"GiB free, {state}: {remedy} and run the same command again"
    )
