"""The thread that watches one process: it tells what the process does, finds a hang, names who hangs, and ends it.

Each rank writes what it is doing (train.run.rank_states). When a rank has made no progress for the limit of its phase,
the lowest rank that answers reads the files of all, says who hangs (train.run.culprit), and writes `hung.json`. Each
rank that sees it ends after a grace period, unless it goes on: waiting longer for a rank that hangs does not help.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.run import culprit, flight_records, rank_states, thread_frames
from train.run.atomic_files import write_json_atomically
from train.run.log import ANY_RANK
from train.run.rank_states import Observer, Places, RankState

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between two beats; fewer with short limits
SILENT_BEATS = 4  # a rank that misses them does not answer
GRACE = 30.0  # seconds between the line about a hang and the end; fewer with short limits
_MARGIN = 30.0  # seconds by which a hang is named before ddp_timeout ends the operation that waits for it
_LAST_RESORT = 1.25  # times ddp_timeout: ends a process in which Python does not run
_REARM = 5.0  # seconds between two settings of that timer, each of which costs a thread
_PATIENCE = 10.0  # seconds that the end of a watch waits for its thread, which a file system may hold
_MOVED = 2**20  # bytes read and written between two beats that show a start or a save at work
_COMPILED = ("step", "evaluation")  # phases whose first of its kind may compile, and has the time of the start
_BY_BYTES = ("start", "save")  # elsewhere a thread may read or write while the training hangs


@dataclass(frozen=True)
class _At:
    """Where the main thread is; replaced as a whole, as the watching thread reads it at any time."""

    phase: str = "start"
    step: int = 0
    part: str = ""
    position: int = 0
    first: bool = True  # whether the phase is the first of its kind


@dataclass(frozen=True)
class _Named:
    """A hang that was found, by this rank or another."""

    at: float  # time.monotonic
    ours: bool


class Watchdog(threading.Thread):
    """Watches one process.

    Args:
        limits: seconds without progress, by phase.
        timeout: ddp_timeout, in seconds; a hang is named before it is over.
    """

    def __init__(
        self, limits: Mapping[str, float], timeout: float, rank: int, world_size: int, places: Places | None
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        most = max(timeout / 2, 0.9 * timeout - _MARGIN)
        self._limits = {phase: min(limit, most) for phase, limit in limits.items()}
        shortest = min(self._limits.values())
        self._every, self._grace = min(BEAT, shortest / 6), min(GRACE, shortest / 2)
        self._silent_after = SILENT_BEATS * self._every
        self._timeout, self._rank, self._world_size = timeout, rank, world_size
        self._places, self._host = places, socket.gethostname()
        self._observer = Observer(places.ranks, self._silent_after) if places and world_size > 1 else None
        self._at, self._begun = _At(), {"start"}
        self._last, self._since, self._armed = time.monotonic(), time.time(), -_REARM
        self._beat = self._bytes = 0
        self._named: _Named | None = None
        self._stopped = threading.Event()

    # What the main thread says.

    def enter(self, phase: str, step: int, part: str = "") -> None:
        """A phase begins."""
        self._at = _At(phase, step, part, self._at.position + 1, phase not in self._begun)
        self._begun.add(phase)
        self.progress()

    def part(self, name: str) -> None:
        """A part of the phase begins."""
        at = self._at
        self._at = _At(at.phase, at.step, name, at.position + 1, at.first)
        self.progress()

    def progress(self) -> None:
        """Something was done."""
        self._last, self._since = time.monotonic(), time.time()
        if self._last - self._armed < _REARM:
            return
        self._armed = self._last
        self._end_by_force_after(max(self._timeout * _LAST_RESORT, max(self._limits.values()) + 2 * self._grace))

    def stop(self) -> None:
        """End the watch."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()
        if self.is_alive():
            self.join(_PATIENCE)
        if self._places:
            rank_states.remove(self._places.ranks, self._rank)

    # What the thread does.

    def run(self) -> None:
        """Look again and again. What goes wrong in a look is reported, and the next one is made."""
        self._forget_earlier_start()
        told = False
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception as error:
                if not told:
                    log.warning(f"the watch over hangs fails: {type(error).__name__}: {error}", extra=ANY_RANK)
                told = True
            self._stopped.wait(self._every)

    def _forget_earlier_start(self) -> None:
        if not self._places:
            return
        with contextlib.suppress(OSError):
            flight_records.remove(self._places.ranks, self._rank)
            if self._rank == 0:
                self._places.keep_earlier()

    def look(self) -> None:
        """One beat."""
        self._count_bytes()
        try:
            self._beat_once()
        finally:
            self._bytes = _bytes_moved()  # what is read and written here is no progress

    def _beat_once(self) -> None:
        state = self._state()
        if self._places and self._places.make():
            rank_states.write(self._places.ranks, state)
        if self._named:
            self._end_or_go_on(self._named)
        elif state.waited < self._limit() - 2 * self._silent_after:
            if self._observer:
                self._observer.forget()
        elif not self._join_others(state):
            self._judge(state)

    def _limit(self) -> float:
        at = self._at
        own = self._limits[at.phase]
        return max(own, self._limits["start"]) if at.first and at.phase in _COMPILED else own

    def _state(self) -> RankState:
        at, waited = self._at, time.monotonic() - self._last
        late = waited > self._limit()
        where, waits = thread_frames.main_thread() if late else ("", False)
        self._beat += 1
        return RankState(
            rank=self._rank,
            host=self._host,
            process=os.getpid(),
            beat=self._beat,
            phase=at.phase,
            part=at.part,
            step=at.step,
            position=at.position,
            since=self._since,
            waited=waited,
            late=late,
            waits=waits,
            where=where,
        )

    def _count_bytes(self) -> None:
        """Take what a start or a save reads and writes for progress: one file may be of many gigabytes."""
        if self._at.phase in _BY_BYTES and self._beat and _bytes_moved() - self._bytes > _MOVED:
            self.progress()

    def _judge(self, state: RankState) -> None:
        """Name who hangs, if this is the lowest rank that answers and all that answer are late."""
        states: dict[int, RankState | None] = {}
        silent: list[int] = []
        if self._observer and self._places and self._places.make():  # else each rank tells of itself
            if self._observer.is_seen_to_beat(range(self._rank)):
                return
            states, silent = self._observer.look([r for r in range(self._world_size) if r != self._rank])
        states = dict(sorted({**states, self._rank: state}.items()))
        answering = [one for rank, one in states.items() if one and rank not in silent]
        lower_may_answer = any(rank in states and rank not in silent for rank in range(self._rank))
        if not lower_may_answer and all(one.late for one in answering):
            self._name_who_hangs(states, silent)

    def _name_who_hangs(self, states: dict[int, RankState | None], silent: list[int]) -> None:
        verdict = culprit.find(states, silent)
        mine = states[self._rank]
        assert mine is not None
        message = culprit.line(verdict, states, mine, time.time())
        about = culprit.about(verdict, states, mine)
        stacks = [rank for rank in verdict.ranks or [self._rank] if rank not in silent]
        log.error(message, extra=ANY_RANK)
        content = {
            "time": time.time(),
            "rank": verdict.ranks[0] if verdict.ranks else None,
            "ranks": verdict.ranks,
            "host": about.host if about and verdict.ranks else None,
            "phase": about.phase if about else None,
            "since": about.since if about else mine.since,
            "message": message,
            "stacks": stacks,
        }
        self._write_hung(content)
        self._join_hang(stacks, ours=True)

    def _write_hung(self, content: dict[str, Any]) -> None:
        if self._places and self._places.hung.parent.is_dir():
            write_json_atomically(self._places.hung, content)

    def _join_others(self, state: RankState) -> bool:
        """Whether another rank has named a hang, which then ends this one too."""
        hung = self._read_hung()
        if not hung or state.waited < self._limit() / 2:  # one of an earlier start may lie there for a moment
            return False
        self._join_hang(hung.get("stacks", []), ours=False)
        return True

    def _read_hung(self) -> dict[str, Any]:
        if not self._places:
            return {}
        try:
            return json.loads(self._places.hung.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _join_hang(self, stacks: list[int], *, ours: bool) -> None:
        """Show what is asked of this rank, and end after the grace period."""
        self._named = _Named(time.monotonic(), ours)
        self._end_by_force_after(self._grace + 2 * self._silent_after)  # Python may not run then
        if self._rank in stacks:
            log.error(f"rank {self._rank} on {self._host}: its threads:", extra=ANY_RANK)
            faulthandler.dump_traceback(file=_stderr(), all_threads=True)
        if self._places and self._places.make():
            flight_records.dump(self._places.ranks, self._rank)

    def _end_or_go_on(self, named: _Named) -> None:
        if self._last > named.at:
            self._named = None
            self._armed = -_REARM
            self.progress()
            if named.ours:
                log.warning("the ranks go on after all", extra=ANY_RANK)
                if self._places:
                    self._places.hung.unlink(missing_ok=True)
        elif time.monotonic() - named.at > self._grace:
            try:
                if named.ours:
                    self._report_operation()
            finally:
                end_process()

    def _report_operation(self) -> None:
        """Say which operation the ranks wait in, as far as their flight recorders tell."""
        operation = flight_records.describe(self._places.ranks, self._world_size) if self._places else None
        if operation:
            log.warning(operation, extra=ANY_RANK)
            self._write_hung({**self._read_hung(), "operation": operation})

    def _end_by_force_after(self, seconds: float) -> None:
        """Works also where an operation without a time limit of its own does not let Python run."""
        faulthandler.dump_traceback_later(seconds, exit=True, file=_stderr())


def end_process() -> None:
    """End with exit code 1, whatever the main thread does."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(1)


def _stderr() -> Any:
    return sys.__stderr__ or sys.stderr


def _bytes_moved() -> int:
    """Bytes that this process has read and written, pages of mapped files included; 0 where that is not known."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in lines)
    return sum(int(counts.get(name, 0)) for name in ("rchar", "wchar", "read_bytes"))
