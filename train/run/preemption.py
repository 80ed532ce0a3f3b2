"""Preemption: a signal is noted, all ranks agree at the end of a step, save, and stop with exit code 0.

The handler only notes the signal. Signals do not reach all ranks in the same step, so in each step they are reduced
over all of them, together with the loss (train.loop.bad_steps): every rank saves after the same step, or none does
(train.run.preemption_callback). When the checkpoint is published, `preempted.json` in the run directory tells the batch
script that the job may be requeued; it is removed at the next start. (A launcher turns other exit codes into 1, hence a
file and not a code.)

Ctrl-C is such a signal too, but nobody requeues the run: it ends with exit code 130. A second one stops at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from data_prep.program_name import speaker
from train.run.atomic_files import write_json_atomically

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
MARKER = "preempted.json"
INTERRUPTED = 128 + signal.SIGINT  # the exit code after Ctrl-C, as a shell gives it
_REPEATED = 1.0  # seconds: a launcher passes on the Ctrl-C that its processes have got from the terminal


class Signals:
    """The signals of a preemption, or Ctrl-C, that this process got.

    Attributes:
        stepping: whether there are steps to finish and save; without any, Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.stepping = False
        self._names: list[str] = []  # only the handlers append
        self._interrupted_at: float | None = None
        self._process = os.getpid()

    def install(self) -> None:
        """Take the signals from now on. Called before the slow imports: an unhandled USR1 would end the process."""
        for number in SIGNALS:
            signal.signal(number, self._note)
        signal.signal(signal.SIGINT, self._interrupt)

    def first(self) -> str | None:
        """The name of the first one, if any."""
        return self._names[0] if self._names else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._names.append(signal.Signals(number).name)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker that loads data: it ends with its parent
        now = time.monotonic()
        if self.stepping and self._interrupted_at is None:
            self._interrupted_at = now
            self._note(number, frame)
            _tell("Ctrl-C: this step is finished and saved, then training stops; once more: it stops at once")
        elif self._interrupted_at is None:
            _tell("stopped by Ctrl-C before the first step: there is nothing to save")
            os._exit(INTERRUPTED)
        elif now - self._interrupted_at > _REPEATED:
            _tell("stopped at once by Ctrl-C: the same command goes on from the newest complete checkpoint")
            os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    """A line from a signal handler, which may have interrupted a print or a line of the log; from rank 0 alone."""
    if os.environ.get("RANK", "0") == "0":
        stream = sys.__stderr__
        os.write(stream.fileno() if stream else 2, f"{speaker('train.sft')}: {line}\n".encode())


def mark(run_dir: Path, step: int) -> None:
    """Tell the batch script that the state after `step` is saved and the job may go on later."""
    write_json_atomically(run_dir / MARKER, {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def unmark(run_dir: Path) -> None:
    """Remove the mark of the attempt before."""
    (run_dir / MARKER).unlink(missing_ok=True)
