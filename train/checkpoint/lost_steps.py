"""Steps that a run has done and cannot go on from: nothing begins again by mistake, and what is trained twice is said.

A purge of old files, a full quota or half a copy leaves folders that lack files, or nothing but `run.json`, which names
the last step that was saved. A first start that was killed before its first checkpoint has left neither.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from train.checkpoint import folders
from train.checkpoint.folders import MARKER, Checkpoint
from train.run.run_record import FILE, read_record

log = logging.getLogger(__name__)

_GIVEN_UP = ("damaged-checkpoint-*", "aside-checkpoint-*")


def check_nothing_is_lost(run_dir: Path) -> None:
    """To be called where a run has nothing to go on from, and would begin.

    Raises:
        ValueError: it has done steps before; says what each folder lacks, and how to begin again on purpose.
    """
    found = [text for _, text in _lost_states(run_dir)]
    if (ended := _ended_step(run_dir)) is not None and not _problem(run_dir):
        found.append(f"the final model of step {ended}: training cannot go on from it")
    found += [f"{folder.name}: given up before, found damaged or archived" for folder in _given_up(run_dir)]
    if not found:
        return
    listed = "".join(f"\n- {text}" for text in found)
    raise ValueError(
        f"{run_dir} holds a run that has done steps, but nothing to go on from:{listed}\nNothing was changed. Bring "
        "back what is missing (a copy, a snapshot of the file system) and start again. To begin at step 0 instead, "
        f"choose another output_dir, or move these folders, {MARKER} and {FILE} away"
    )


def warn_of_steps_trained_again(run_dir: Path, taken: Checkpoint) -> None:
    """Say loudly that a checkpoint is taken because something newer is not usable."""
    newer = [(step, text) for step, text in _lost_states(run_dir) if step is None or step >= taken.step]
    if not newer:
        return
    last = max(step or taken.step for step, _ in newer)
    again = f"steps {taken.step + 1} to {last} are trained again" if last > taken.step else "no step is trained again"
    texts = "; ".join(text for _, text in newer)
    log.warning(f"A NEWER STATE IS NOT USABLE: {texts}. {taken.path.name} is taken instead: {again}")


def _lost_states(run_dir: Path) -> Iterator[tuple[int | None, str]]:
    """What was saved and is not usable: its step, where that is known, and what it lacks. Newest checkpoints first."""
    for folder in reversed(folders.named_folders(run_dir)):
        if problem := _problem(folder):
            yield folders.step_of(folder), problem
    ended = _ended_step(run_dir)
    if (run_dir / MARKER).exists() and (problem := _problem(run_dir)):
        yield ended, f"the final model: {problem}"
    saved = (read_record(run_dir) or {}).get("saved_step")
    if saved and saved != ended and not (run_dir / f"checkpoint-{saved}").is_dir():
        yield saved, f"checkpoint-{saved}: is not there, and {FILE} says that step {saved} was saved"


def _given_up(run_dir: Path) -> list[Path]:
    return sorted(folder for pattern in _GIVEN_UP for folder in run_dir.glob(pattern))


def _problem(folder: Path) -> str | None:
    try:
        folders.read(folder)
    except ValueError as problem:
        return str(problem)
    return None


def _ended_step(run_dir: Path) -> int | None:
    """The step of the final model, by its marker alone."""
    try:
        step = json.loads((run_dir / MARKER).read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
