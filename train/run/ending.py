"""The end of a process, which waits for nobody: trackers, uploads, threads and exit hooks have a bounded time.

From `begin` on the clock runs. In the usual case the interpreter joins its threads and calls its exit hooks, of which
ours is the last; that ends the process there, before destructors of the libraries can hang. If anything takes longer,
a thread of our own says what was at work and ends the process, with the same exit code.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from train.run import spoken
from train.run.log import ANY_RANK

log = logging.getLogger(__name__)

LIMIT = 20.0  # seconds from the last line to the end of the process
HURRIED = 10.0  # after a signal: a grace period is running
SPARE = 4.0  # what the rest of the end takes next to the tracker that waits longest
_LAST_WORDS = 2.0  # of these, for what is said and given back by force

# What is done by force: each may end helpers, and gives a line about what is left undone, or None.
by_force: list[Callable[[], str | None]] = []
_codes: list[int] = []  # the exit code, from `begin` on


def end_here(held: ExitStack) -> None:
    """Let the process end in the last of its exit hooks, once the end has begun. Call it before the libraries load.

    Args:
        held: what is held until then, such as a lock.
    """

    def leave() -> None:
        if _codes:
            _give_back(held)
            os._exit(_codes[0])

    atexit.register(leave)  # hooks are called in reverse: what is registered first comes last


def begin(exit_code: int, seconds: float, held: ExitStack) -> None:
    """From now on the process ends within `seconds`, with this exit code, whatever hangs."""
    _codes[:] = [exit_code]
    deadline = time.monotonic() + seconds - _LAST_WORDS

    def watch() -> None:
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 60.0))
        lines = _act()
        _within(_LAST_WORDS / 4, lambda: _say(seconds, lines))
        _within(_LAST_WORDS / 4, lambda: _give_back(held))
        os._exit(exit_code)

    threading.Thread(target=watch, daemon=True, name="ending").start()


def _within(seconds: float, action: Callable[[], None]) -> None:
    """Do something that may hang itself, such as a line into a pipe that nobody reads."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def _act() -> list[str]:
    """What is done by force, all at once, as each may hang itself; the lines of those that come back in time."""
    lines: list[str] = []

    def act(action: Callable[[], str | None]) -> None:
        if line := action():
            lines.append(line)

    threads = [threading.Thread(target=act, args=(action,), daemon=True) for action in by_force]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _LAST_WORDS / 2
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return lines


def _say(seconds: float, lines: list[str]) -> None:
    others = (t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread())
    names = ", ".join(sorted(thread.name for thread in others)) or "an exit hook or the interpreter"
    who = "" if spoken.rank() == 0 else spoken.who()
    told = f"the end of this process takes {seconds:.0f} s, and is forced now; still at work: {names}"
    log.warning(f"{who}{'. '.join([told, *lines])}", extra=ANY_RANK)


def _give_back(held: ExitStack) -> None:
    with suppress(Exception):  # nobody is left to hear of it
        held.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
