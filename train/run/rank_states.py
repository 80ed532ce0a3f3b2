"""What each rank is doing, in a file per rank that the others read when it no longer answers.

The folder is on a file system that all nodes share. A file is replaced at each beat, and opened anew at each read, so
that a network file system shows its newest content. A rank answers as long as its file changes: clocks of hosts differ.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_HUNG = "hung.json"
EARLIER_HUNG = ".ranks/earlier-hung.json"  # in the run directory, until train.run.starts has read it


@dataclass(frozen=True)
class Places:
    """Where the ranks tell each other what they do: the folder of their files, and the file about a hang."""

    ranks: Path
    hung: Path

    @classmethod
    def of(cls, job: str | None, run_dir: Path, world_size: int) -> Places | None:
        """In a job the folder of its attempt, else the run directory. A process alone has nobody to tell."""
        if job:
            return cls(Path(job) / "ranks", Path(job) / _HUNG)
        return cls(run_dir / ".ranks", run_dir / ".ranks" / _HUNG) if world_size > 1 else None

    def keep_earlier(self) -> None:
        """Put the file about a hang of an earlier start out of the way; in a job each attempt has a folder anew.

        Raises:
            OSError: there is none, or it cannot be renamed.
        """
        self.hung.replace(self.hung.with_name(Path(EARLIER_HUNG).name))

    def make(self) -> bool:
        """Whether the folder is there. The run directory itself is made by who may make it."""
        with contextlib.suppress(OSError):
            self.ranks.mkdir(exist_ok=True)
        return self.ranks.is_dir()


@dataclass(frozen=True, kw_only=True)
class RankState:
    """One rank at its last beat."""

    rank: int
    host: str
    process: int
    beat: int  # number of the beat
    phase: str  # start, step, save, evaluation
    part: str  # of the phase
    step: int  # that is being made, or was made last
    position: int  # number of phases and parts begun: all ranks begin the same ones, in the same order
    since: float  # of the last progress, in epoch seconds by this host's clock
    waited: float  # seconds since then
    late: bool  # whether that is more than the phase's limit
    waits: bool  # whether the main thread waits for other ranks or for the device; known once it is late
    where: str  # what the main thread runs; empty until it is late


def file_of(folder: Path, rank: int) -> Path:
    """The file of a rank."""
    return folder / f"rank{rank}.json"


def write(folder: Path, state: RankState) -> None:
    """Replace a rank's file. Not forced to disk: it is worth nothing after a crash of the machine.

    Raises:
        OSError: it cannot be written.
    """
    path = file_of(folder, state.rank)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(asdict(state)), encoding="utf-8")
    temporary.replace(path)


def read(folder: Path, rank: int) -> RankState | None:
    """A rank's state; None if there is none, or if it cannot be read."""
    try:
        return RankState(**json.loads(file_of(folder, rank).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Observer:
    """Looks at the files again and again, to see which ranks answer.

    Args:
        silent_after: seconds without a new beat after which a rank does not answer.
    """

    def __init__(self, folder: Path, silent_after: float):
        self._folder, self._silent_after = folder, silent_after
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._states: dict[int, RankState | None] = {}
        self._changed: dict[int, float] = {}  # when a rank's file was seen to change, or seen first (time.monotonic)
        self._beating: set[int] = set()  # ranks whose file was seen to change

    def is_seen_to_beat(self, ranks: Iterable[int]) -> bool:
        """Whether one of these ranks certainly answers. Reads no more files than it takes to know."""
        return any(not self._is_silent(rank) and rank in self._beating for rank in ranks)

    def look(self, ranks: Iterable[int]) -> tuple[dict[int, RankState | None], list[int]]:
        """The states of these ranks, and those that do not answer; one first seen just now counts as answering."""
        silent = [rank for rank in ranks if self._is_silent(rank)]
        return {rank: self._states[rank] for rank in ranks}, silent

    def _is_silent(self, rank: int) -> bool:
        state, now = read(self._folder, rank), time.monotonic()
        before = self._states.get(rank)
        if rank not in self._changed:
            self._changed[rank] = now
        elif state and (before is None or _beat(state) != _beat(before)):
            self._changed[rank] = now
            self._beating.add(rank)
        self._states[rank] = state or before
        return now - self._changed[rank] > self._silent_after


def _beat(state: RankState) -> tuple[str, int, int]:
    return state.host, state.process, state.beat


def remove(folder: Path, rank: int) -> None:
    """Remove a rank's file, and the folder with the last one; what cannot be removed stays."""
    try:
        file_of(folder, rank).unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        return  # other ranks are still there
