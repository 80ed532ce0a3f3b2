"""starts/NNNN.json: each start of a run: where it went on from, how far it came, how it ended, and how it was started.

The first process writes the file of its own start: at the beginning, at its first step, every ALIVE seconds of training
and at its end. What it could not write itself (it was killed, or another rank has the cause) the next start adds as
`found`, from the files that other processes and the job's script have left. Times are in epoch seconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.run import atomic_files, spoken
from train.run.atomic_files import write_json_atomically
from train.run.rank_states import EARLIER_HUNG

FOLDER = "starts"
ALIVE = 30.0  # seconds of training between two notes
DECISION = "decision.json"  # of the job's script, in the folder of an attempt's logs
# How a start ended, as far as its first process knew.
COMPLETE, SAVED, INTERRUPTED, REFUSED, FAILED = "complete", "saved", "interrupted", "refused", "failed"
_MOST = 2000  # characters of a message

_mine: Start | None = None  # of this process


class Start:
    """The file of one start.

    Args:
        path: `starts/NNNN.json`.
        content: what it holds from the beginning.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self._path, self._content, self._noted = path, content, 0.0

    def note(self, **more: Any) -> None:
        """Add to it. A full disk is a warning."""
        self._content |= more
        self._noted = time.monotonic()
        with atomic_files.warning(f"{self._path} does not say {', '.join(more)}"):
            self._path.parent.mkdir(exist_ok=True)
            write_json_atomically(self._path, self._content)

    def step(self, step: int) -> None:
        """A step is done."""
        if time.monotonic() - self._noted > ALIVE:
            self.note(step=step, alive=time.time())


def begin(run_dir: Path, processes: int, **more: Any) -> None:
    """This process is the first one of a start, and holds the run directory."""
    global _mine
    earlier = read_starts(run_dir)
    if earlier:
        _complete_last(run_dir, earlier[-1])
    folder = spoken.shared_folder()
    content = {
        "began": time.time(),
        "host": socket.gethostname(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "processes": processes,
        "logs": str(folder.resolve()) if folder else None,
    }
    number = earlier[-1]["number"] + 1 if earlier else 1
    _mine = Start(run_dir / FOLDER / f"{number:04}.json", {**content, **more})
    _mine.note()


def resumed(step: int, saved: float | None) -> None:
    """Where it goes on from.

    Args:
        saved: when that state was saved; None at step 0.
    """
    if _mine:
        _mine.note(from_step=step, state_saved=saved)


def first_step(step: int) -> None:
    """The first step is done."""
    if _mine:
        _mine.note(first_step=time.time(), step=step, alive=time.time())


def step_done(step: int) -> None:
    """Called after each step; writes now and then."""
    if _mine:
        _mine.step(step)


def end(how: str, said: str = "", *, step: int | None = None, consequence: bool = False) -> None:
    """How it ends; the first word counts.

    Args:
        step: the last one done, where it is known.
        consequence: whether the cause is another rank's.
    """
    global _mine
    start, _mine = _mine, None
    if start:
        ended = {"time": time.time(), "how": how, "said": said[:_MOST], "consequence": consequence}
        start.note(ended=ended, **({} if step is None else {"step": step}))


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """All starts, in order, each with its `number`; of a file that cannot be read, that and `problem` alone."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("[0-9]*.json")):
        if not path.stem.isdecimal():
            continue
        try:
            content = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            content = {"problem": f"{path.name} cannot be read: {error}"}
        found.append({**content, "number": int(path.stem)})
    return sorted(found, key=lambda start: start["number"])


def _complete_last(run_dir: Path, last: dict[str, Any]) -> None:
    """Add to the last start what others have left about its end, before it is gone."""
    found = left_behind(last, run_dir)
    with suppress(OSError):
        (run_dir / EARLIER_HUNG).unlink()
    if found and "problem" not in last:
        content = {name: value for name, value in last.items() if name != "number"}
        Start(run_dir / FOLDER / f"{last['number']:04}.json", content).note(found=found)


def left_behind(start: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """What the other processes, the launchers and the job's script have left about a start's end.

    Returns:
        cause: in words; decision: what followed, as the job's script says it, and slurm, what SLURM said of the job.
        Each only where something is known.
    """
    found: dict[str, Any] = dict(start.get("found") or {})
    if cause := next(_causes(start, run_dir), None):
        found["cause"] = cause[:_MOST]
    decision = _read(Path(start["logs"]) / DECISION) if start.get("logs") else {}
    found |= {name: decision[name] for name in ("decision", "slurm") if decision.get(name)}
    return found


def _causes(start: dict[str, Any], run_dir: Path) -> Iterator[str]:
    """In words; the best one first. Errors that name a cause, then a hang, then who was ended without a word."""
    logs = Path(start["logs"]) if start.get("logs") else None
    errors = [] if logs is None else [found for file in logs.glob("error-rank*.json") if (found := _read(file))]
    for one in sorted(errors, key=_time):
        if not one.get("consequence") and one.get("message"):
            yield f"rank {one.get('rank')} on {one.get('host')}: {one['message']}"
    for hung in (_read(logs / "hung.json") if logs else {}, _read(run_dir / EARLIER_HUNG)):
        if hung.get("message") and _time(hung) >= _time({"time": start.get("began")}):
            yield str(hung["message"])
    launches = [] if logs is None else [_read(file) for file in logs.glob("launch-node*.json")]
    failed = [one for one in launches if one.get("exit_code")]
    for one in sorted(failed, key=_time):
        yield f"{one.get('who')} on {one.get('host')} {_without_a_word(one['exit_code'])}"


def _without_a_word(exit_code: int) -> str:
    """How a process ended that left no message; 128 + N is signal N."""
    with suppress(ValueError):
        name = signal.Signals(exit_code - 128).name
        return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return f"ended with exit code {exit_code}, and said nothing"


def _time(found: dict[str, Any]) -> float:
    seconds = found.get("time")
    return float(seconds) if isinstance(seconds, (int, float)) else 0.0


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
