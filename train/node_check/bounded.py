"""Work with a limit of time: processes that are left behind when they hang, and calls in a thread of their own.

A process that waits for a broken GPU or file system cannot be killed (state D). So nothing here waits for the end of
what it has killed, as subprocess.run does.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Generic, TypeVar

T = TypeVar("T")
_POLL = 0.01  # seconds
_KILLED = 3.0  # seconds that a killed process is given to end


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None  # None: its time was over
    out: str
    err: str = ""

    @property
    def last_words(self) -> str:
        """The last line that names an error, as advice may follow it; or the last line at all."""
        lines = (self.err.strip() or self.out.strip() or "it says nothing").splitlines()
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return (errors or lines)[-1].strip()


def run(command: Sequence[str], seconds: float) -> Ended:
    """One process, for at most `seconds`.

    Raises:
        OSError: the command cannot be started, such as FileNotFoundError.
    """
    return run_all({0: command}, seconds)[0]


def run_all(
    commands: Mapping[int, Sequence[str]], seconds: float, meanwhile: Callable[[], None] | None = None
) -> dict[int, Ended]:
    """Several processes side by side, for at most `seconds` in all.

    Args:
        meanwhile: called over and over as long as one runs.

    Raises:
        OSError: a command cannot be started.
    """
    deadline, running = time.monotonic() + seconds, {}
    try:
        for key, command in commands.items():
            running[key] = _Running(command)
        while any(one.runs() for one in running.values()) and time.monotonic() < deadline:
            if meanwhile:
                meanwhile()
            time.sleep(_POLL)
        over = {key for key, one in running.items() if one.runs()}
    finally:
        _end([one for one in running.values() if one.runs()])
    return {key: one.ended(key in over) for key, one in running.items()}


class _Running:
    """A process whose output goes into files: a pipe that fills up would stop it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in ("out", "err")]  # noqa: SIM115
        out, err = self.files
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def runs(self) -> bool:
        return self.process.poll() is None

    def ended(self, over: bool) -> Ended:
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(None if over else self.process.returncode, *texts)


def _end(left: list[_Running]) -> None:
    """Kill what still runs, and wait for a moment: what hangs in the kernel stays."""
    for one in left:
        one.process.kill()
    deadline = time.monotonic() + _KILLED
    while any(one.runs() for one in left) and time.monotonic() < deadline:
        time.sleep(_POLL)


class Background(Generic[T]):
    """A call in a thread that does not keep the process alive."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._values: list[T] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._values.append(work())
        except BaseException as error:  # raised where the value is asked for
            self._errors.append(error)

    def result(self, seconds: float) -> T:
        """What the call returned or raised.

        Raises:
            TimeoutError: it has not ended within `seconds` from now.
        """
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {seconds:g} s")
        if self._errors:
            raise self._errors[0]
        return self._values[0]


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns.

    Raises:
        TimeoutError: it takes longer; it goes on in its thread.
    """
    return Background(work).result(seconds)
