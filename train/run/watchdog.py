"""The watch over this process: what the rest of the code tells it, and what an error of a lost rank means."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Mapping
from pathlib import Path

from train.run import flight_records
from train.run.hang_watch import Watchdog
from train.run.rank_states import Places

# Seconds without progress after which a rank hangs, by phase.
LIMITS = {"start": 1800.0, "step": 600.0, "save": 1800.0, "evaluation": 600.0}
_LATE = "a process has not answered within ddp_timeout"
_GONE = "another process has ended"
_LOST = {  # by what gloo, NCCL and torch's store say of it
    "timed out": _LATE,
    "timeout": _LATE,
    "ncclremoteerror": f"{_GONE}, or the network between the nodes has failed",
    "remote process exited": f"{_GONE}, or the network between the nodes has failed",
    "connection closed by": _GONE,  # peer, remote peer
    "connection reset by": _GONE,
    "broken pipe": _GONE,
    "communicator was aborted": f"{_GONE}, or has waited too long",
}
_NOT_LOST = ("cuda error", "dataloader")  # a kernel or a worker that timed out


_watch: Watchdog | None = None  # of this process, from the start of a run to its end


def explain(error: RuntimeError) -> str | None:
    """What an error of a collective operation means, or None for any other error."""
    text = str(error)
    lower = text.lower()
    meaning = next((words for sign, words in _LOST.items() if sign in lower), None)
    if meaning is None or any(words in lower for words in _NOT_LOST):
        return None
    return (
        f"{meaning}: this is a consequence, the cause is the error of another rank, or what the launcher says of the "
        "process that ended first. The same command goes on from the newest complete checkpoint. "
        f"({text.splitlines()[0][:300]})"
    )


def begin(limits: Mapping[str, float], timeout: float, run_dir: Path) -> None:
    """Watch this process from now on; it is in the phase "start".

    Args:
        limits: seconds by phase, where they are not those of LIMITS.
        timeout: seconds after which a collective operation fails by itself (ddp_timeout).
        run_dir: where the ranks tell each other what they do, once it is there, if no job gives a folder.
    """
    global _watch
    end_watch()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    places = Places.of(os.environ.get("PACKHAUL_LOG_DIR"), run_dir, world_size)
    if places:
        flight_records.set_up(places.ranks)
    _watch = Watchdog({**LIMITS, **limits}, timeout, rank, world_size, places)
    _watch.progress()
    _watch.start()


def enter(phase: str, step: int, part: str = "") -> None:
    """This rank begins a phase. All ranks begin the same ones in the same order."""
    if _watch:
        _watch.enter(phase, step, part)


def part(name: str) -> None:
    """This rank begins a part of its phase. All ranks begin the same ones in the same order."""
    if _watch:
        _watch.part(name)


def progress() -> None:
    """Report progress within a part: a batch of an evaluation, an answer to a prompt, a file of a checkpoint."""
    if _watch:
        _watch.progress()


def end_watch() -> None:
    """Stop watching this process: nothing ends it any more."""
    global _watch
    watch, _watch = _watch, None
    if watch:
        watch.stop()
    faulthandler.cancel_dump_traceback_later()
