"""XID messages of NVIDIA's driver in the kernel log, where this user may read it."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from train.node_check.bounded import run

RECENT_SECONDS = 24 * 3600.0  # an older one has been seen to, or shows in the counters
# Faults of the GPU, its memory, links or firmware. Others, such as 13, 31 and 43, are as a rule a program's own.
HARDWARE = frozenset({48, 61, 62, 64, 74, 79, 92, 94, 95, 110, 119, 120, 136, 140, 143})
_SECONDS = 20
_LINE = re.compile(r"\[\s*(\d+\.\d+)\].*NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)[, ]*(.*)")


@dataclass(frozen=True)
class Xid:
    """One message."""

    bus: str  # 0000:3b:00, without the function
    number: int
    text: str
    age: float  # seconds

    @property
    def is_serious(self) -> bool:
        """Whether it is a recent fault of the hardware."""
        return self.number in HARDWARE and self.age < RECENT_SECONDS

    def is_of(self, bus: str) -> bool:
        """Whether it is about the GPU at this PCI address."""
        return bool(bus) and bus.lower().startswith(self.bus.lower())


def in_words(xids: Iterable[Xid]) -> Iterator[str]:
    """A line for each number, with the last message: the driver may repeat one for hours."""
    by_number: dict[int, list[Xid]] = defaultdict(list)
    for xid in xids:
        by_number[xid.number].append(xid)
    for number, same in by_number.items():
        times = f" ({len(same)} times)" if len(same) > 1 else ""
        yield f"XID {number}{times}, {same[-1].age / 60:.0f} minutes ago: {same[-1].text}"


def xids() -> list[Xid] | None:
    """All messages, oldest first; None where the log cannot be read."""
    try:
        done = run(["dmesg"], _SECONDS)
    except OSError:
        return None
    if done.code != 0:
        return None
    now = uptime()
    return [
        Xid(match[2], int(match[3]), match[4].strip(), max(0.0, now - float(match[1])))
        for match in map(_LINE.match, done.out.splitlines())
        if match
    ]


def uptime() -> float:
    """Seconds since the kernel started, as its log counts."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
