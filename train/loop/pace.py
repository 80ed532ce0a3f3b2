"""How long each rank takes for the parts of its steps, and which rank is the slowest.

All ranks end a step together, so a slow rank is not seen by its steps: it is the one that the others wait for, and that
waits least itself. On a GPU the parts are measured by events, which are read once they have passed: nothing waits.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from train.run import watchdog

if TYPE_CHECKING:
    import torch

PARTS = ("data", "forward", "backward", "waiting")
_LATER = "update"  # what follows: the optimizer, and what is not training


class Pace:
    """Seconds of each part since they were last taken; tells the watchdog which part has begun.

    "waiting" is the time in the two operations of all ranks that a step has besides its gradients: the number of
    trained tokens is summed before the first forward pass, and the loss at the end of the last one.
    """

    def __init__(self, device: torch.device):
        self._clock = _EventClock() if device.type == "cuda" else _HostClock()
        self._part: str | None = None
        self._mark: Any = None

    def begin(self, part: str) -> None:
        """A part of the step begins, and with it the one before ends; nothing, if it is under way already."""
        if part != self._part:
            watchdog.part(part)
            self._begin(part)

    def _begin(self, part: str) -> None:
        mark = self._clock.mark()
        if self._part in PARTS:
            self._clock.add(self._part, self._mark, mark)
        self._part, self._mark = part, mark

    def end_step(self) -> None:
        """The gradients are there."""
        self.begin(_LATER)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done inside waits for the other ranks."""
        before = self._part
        self._begin("waiting")
        yield
        if before:
            self._begin(before)

    def take(self) -> list[float]:
        """Seconds of each of PARTS that are known by now, since they were last taken."""
        return self._clock.take()


class _HostClock:
    """Time of the host, which on a CPU is that of the work."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def mark(self) -> float:
        return time.perf_counter()

    def add(self, part: str, begin: float, end: float) -> None:
        self._seconds[part] += end - begin

    def take(self) -> list[float]:
        seconds = list(self._seconds.values())
        self._seconds = dict.fromkeys(PARTS, 0.0)
        return seconds


class _EventClock(_HostClock):
    """Time of the device between two events in its queue. That of data is the host's: the device has nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self._pending: deque[tuple[str, Any, Any]] = deque()

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return time.perf_counter(), event

    def add(self, part: str, begin: Any, end: Any) -> None:
        if part == "data":
            super().add(part, begin[0], end[0])
            self._read()  # the step before has passed: its gradients' norm was read
        else:
            self._pending.append((part, begin[1], end[1]))

    def _read(self) -> None:
        """Read what the device has passed, in its order."""
        while self._pending and self._pending[0][2].query():
            part, begin, end = self._pending.popleft()
            super().add(part, 0.0, begin.elapsed_time(end) / 1000)

    def take(self) -> list[float]:
        self._read()
        return super().take()


def slowest_rank(seconds: torch.Tensor, steps: int, hosts: list[str]) -> dict[str, Any]:
    """Which rank waits least for the others, and how much longer it works than they do.

    Args:
        seconds: (ranks, PARTS), over all steps.
        steps: number of steps.
        hosts: of each rank.

    Returns:
        The metrics of docs/training.md; none where no rank waits for another.
    """
    table = seconds.tolist()
    if len(table) < 2 or not steps or not any(row[-1] for row in table):
        return {}
    rank = min(range(len(table)), key=lambda number: table[number][-1])
    works = [sum(row[:-1]) for row in table]
    others = statistics.median(works[:rank] + works[rank + 1 :])
    data, forward, backward, waiting = (value / steps for value in table[rank])
    return {
        "slowest_rank": rank,
        "slowest_host": hosts[rank],
        "slowdown": works[rank] / max(others, 1e-9),
        "slowest_data_seconds": data,
        "slowest_forward_seconds": forward,
        "slowest_backward_seconds": backward,
        "slowest_waiting_seconds": waiting,
    }
