"""Folders made of a checkpoint for a launch of another kind, next to it; each is removed once it is loaded."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from train.checkpoint import folders
from train.checkpoint.folders import Checkpoint
from train.run.distributed import gather_problems

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer


def prepare(found: Checkpoint, trainer: CheckpointedTrainer, fill: Callable[[Path], str | None]) -> Path:
    """Let rank 0 make a folder of a checkpoint; the others wait without a time limit, since it may take long.

    Args:
        fill: what is to be in it; gives what went wrong, if anything.

    Raises:
        ValueError: on every rank, if it cannot be made.
    """
    folder = folders.universal_folder(folders.run_dir_of(trainer.args), found.step)
    if trainer.args.process_index == 0:
        error = _make(folder, fill)
        if error:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        error = None
        while not any((folder.parent / f"{folder.name}{end}").exists() for end in (".done", ".failed")):
            time.sleep(0.2)
    if errors := gather_problems([error] if error else []):
        _remove_signs(folder, trainer)
        raise ValueError(f"{found.path} cannot be rearranged for this launch: {errors[0]}")
    _remove_signs(folder, trainer)
    return folder


def _remove_signs(folder: Path, trainer: CheckpointedTrainer) -> None:
    trainer.accelerator.wait_for_everyone()
    if trainer.args.process_index == 0:
        for end in (".done", ".failed"):
            (folder.parent / f"{folder.name}{end}").unlink(missing_ok=True)


def _make(folder: Path, fill: Callable[[Path], str | None]) -> str | None:
    """Make and fill the folder; what went wrong, if anything."""
    sign = ".failed"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if error := fill(folder):
            return error
        sign = ".done"
        return None
    except Exception as error:  # the others wait for the sign, then for what this says
        return str(error)
    finally:
        (folder.parent / f"{folder.name}{sign}").touch()


def link(found: Checkpoint, folder: Path, world_size: int) -> None:
    """Fill a folder with links to what every rank reads, and random states for this launch."""
    for entry in found.path.iterdir():
        if not entry.name.startswith("rng_state"):
            (folder / entry.name).symlink_to(entry.resolve())
    copy_random_states(found, folder, world_size)


def copy_random_states(found: Checkpoint, folder: Path, world_size: int) -> None:
    """A rank that is new takes the random state of another."""
    for rank in range(world_size):
        name = f"rng_state_{rank % found.world_size}.pth" if found.world_size > 1 else "rng_state.pth"
        here = f"rng_state_{rank}.pth" if world_size > 1 else "rng_state.pth"
        shutil.copyfile(found.path / name, folder / here)
