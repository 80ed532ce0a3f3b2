"""What a run directory holds of a run's history: read, never written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.checkpoint import folders
from train.run.run_record import read_record
from train.run.starts import left_behind, read_starts

STATE = "trainer_state.json"
SAMPLES = "samples.jsonl"
QUESTIONS = "sample_questions"  # in it, stands for the source of questions of one's own
BAD_STEPS = "bad_steps"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run."""

    path: Path
    record: dict[str, Any]  # run.json
    history: list[dict[str, Any]]  # what was logged, in order
    step: int  # optimizer steps done
    max_steps: int
    best: str | None  # name of the best checkpoint
    finished: bool  # its final model is complete
    checkpoints: list[tuple[int, int]] = field(default_factory=list)  # (step, bytes) of complete ones, newest first
    samples: list[dict[str, Any]] = field(default_factory=list)  # see train.loop.sample_answers
    bad_steps: list[dict[str, Any]] = field(default_factory=list)  # see train.loop.bad_steps
    starts: list[dict[str, Any]] = field(default_factory=list)  # see train.run.starts
    problems: list[str] = field(default_factory=list)  # what could not be read

    @property
    def name(self) -> str:
        """For people."""
        return str(self.record.get("options", {}).get("run_name") or self.path.name)

    @property
    def sources(self) -> list[str]:
        """Names of the sources with a loss of their own, in the order of the log."""
        found: dict[str, None] = {}
        for entry in self.history:
            found |= {key.removeprefix("loss_"): None for key in entry if key.startswith("loss_")}
        return list(found)

    @property
    def environment(self) -> dict[str, Any]:
        """That of the newest start that has noted it."""
        return next((dict(start["environment"]) for start in reversed(self.starts) if start.get("environment")), {})

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric wherever it was logged; not of values that are no numbers."""
        found = [(entry["step"], entry[name]) for entry in self.history if isinstance(entry.get(name), (int, float))]
        return [(step, value) for step, value in found if abs(value) < float("inf")]


def read_run(path: Path, state: dict[str, Any] | None = None) -> Run:
    """A run from its directory.

    Args:
        state: of the trainer, where the run is training; else that of the final model or the newest checkpoint counts.

    Raises:
        ValueError: no run began there, or none of its states can be read.
    """
    record = read_record(path) if path.is_dir() else None
    if record is None:
        raise ValueError(f"{path}: expected the output_dir of a run, found no run.json")
    checkpoints = folders.find_checkpoints(path)
    if state is None:
        state = _newest_state(path, [checkpoint.path for checkpoint in checkpoints])
    best = state.get("best_model_checkpoint")
    problems: list[str] = []
    return Run(
        path=path,
        record=record,
        history=state.get("log_history", []),
        step=state.get("global_step", 0),
        max_steps=state.get("max_steps", 0),
        best=Path(best).name if best else None,
        finished=(path / folders.MARKER).exists(),
        checkpoints=[(checkpoint.step, checkpoint.size) for checkpoint in checkpoints],
        samples=read_samples(path / SAMPLES, problems),
        bad_steps=_read_bad_steps(path / BAD_STEPS, problems),
        starts=_starts(path),
        problems=problems,
    )


def _newest_state(path: Path, checkpoints: list[Path]) -> dict[str, Any]:
    found = [folder / STATE for folder in (path, *checkpoints) if (folder / STATE).is_file()]
    states = [json.loads(file.read_text("utf-8")) for file in found]
    if not states:
        raise ValueError(
            f"{path}: nothing to report yet: expected {STATE} of a final model or a checkpoint. A run that evaluates "
            "writes report.html itself at each evaluation"
        )
    return max(states, key=lambda state: state.get("global_step", 0))


def read_samples(file: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """The rows of such a file, in order; none if there is no file.

    Args:
        problems: gets a line for each row that cannot be read, which is left out; None: such a row is an error.

    Raises:
        ValueError: a row cannot be read, and there is nobody to tell.
    """
    if not file.exists():
        return []
    rows = []
    # splitlines would cut at U+2028 inside a text
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        try:
            rows += [dict(json.loads(line))] if line else []
        except (ValueError, TypeError) as error:
            if problems is None:
                raise ValueError(f"{file} line {number} cannot be read: {error}: delete it") from None
            problems.append(f"{file.name} line {number} cannot be read: {error}")
    return rows


def _read_bad_steps(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    found = []
    for file in folder.glob("step-*.json"):
        try:
            found.append(dict(json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError) as error:
            problems.append(f"{folder.name}/{file.name} cannot be read: {error}")
    return sorted(found, key=lambda bad: bad.get("step", 0))


def _starts(path: Path) -> list[dict[str, Any]]:
    """All starts; what others have left about the last one's end is looked for, as no later start has."""
    starts = read_starts(path)
    if starts and "problem" not in starts[-1]:
        starts[-1]["found"] = left_behind(starts[-1], path)
    return starts
