"""How a training run says a line, after the name of its command: from rank 0 alone unless a line is about one rank.

The name is `sft`, or `packhaul train` where that has started the run.

A warning of another rank that rank 0 does not say is said a moment later, with rank and host (train.run.spoken).
Each module logs to `logging.getLogger(__name__)`. accelerate's logger needs a process group; ours says lines before
there is one, and why there is none.
"""

from __future__ import annotations

import logging
import sys
import threading
import time

from data_prep.program_name import speaker
from train.run import spoken

ANY_RANK = {"any_rank": True}  # `extra` of a line that every rank may say
_LEVELS = {logging.WARNING: "WARNING: ", logging.ERROR: "error: "}

_waiting: list[threading.Thread] = []  # warnings of this rank that another may say


class Lines(logging.Handler):
    """Writes to standard output; warnings and errors to standard error. The streams are those of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line at once: whoever looks into the log of a job sees how far it is."""
        try:
            if is_wanted(record):
                _say(record)
            elif record.levelno >= logging.WARNING and spoken.shared_folder():
                _say_later(record)
        except Exception:  # as every handler does: logging.raiseExceptions decides
            self.handleError(record)


def line(record: logging.LogRecord, who: str = "") -> str:
    """As it is shown: who speaks (the command that the user called), how grave it is, and of which rank."""
    return f"{speaker('train.sft')}: {_LEVELS.get(record.levelno, '')}{who}{record.getMessage()}"


def is_wanted(record: logging.LogRecord) -> bool:
    """Whether this rank may say it at once."""
    return getattr(record, "any_rank", False) or spoken.rank() == 0


def _say(record: logging.LogRecord) -> None:
    if record.levelno >= logging.WARNING and not getattr(record, "any_rank", False):
        spoken.claim(record.getMessage())
    print(line(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout, flush=True)


def _say_later(record: logging.LogRecord) -> None:
    """In a thread of its own: training waits for nothing."""

    def say() -> None:
        if spoken.is_mine(record.getMessage()):
            print(line(record, spoken.who()), file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True, name="warning of this rank")
    _waiting[:] = [other for other in _waiting if other.is_alive()]
    _waiting.append(thread)
    thread.start()


def finish() -> None:
    """Let warnings that wait for another rank be said before the process ends; takes about spoken.PATIENCE at most."""
    deadline = time.monotonic() + spoken.PATIENCE + 1
    while _waiting:
        _waiting.pop().join(max(0.0, deadline - time.monotonic()))


def set_up() -> None:
    """Show the lines of all modules of `train`. Called again, it changes nothing."""
    logger = logging.getLogger("train")
    if any(isinstance(handler, Lines) for handler in logger.handlers):
        return
    logger.addHandler(Lines())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library may have given the root logger a handler: each line would come twice
