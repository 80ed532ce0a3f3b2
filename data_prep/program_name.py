"""What a command calls itself: by its module (`python -m`), or `packhaul NAME` where that has started it."""

from __future__ import annotations

import os
import sys

PROGRAM = "packhaul"
# What `packhaul train` tells the processes of its launcher, whose own program is train.sft.
STARTED_AS = "PACKHAUL_STARTED_AS"
_LAUNCHED = "train.sft"


def usage_name(module: str) -> str:
    """What its usage line begins with, such as "python -m data_prep.prepare" or "packhaul prepare"."""
    return _started_as(module) or f"python -m {module}"


def speaker(module: str) -> str:
    """What its messages begin with, such as "prepare" or "packhaul prepare"."""
    return _started_as(module) or module.rpartition(".")[2]


def _started_as(module: str) -> str | None:
    """packhaul.command puts its own name and the command's in the place of the program's path."""
    started = sys.argv[0] if sys.argv else ""
    if started.startswith(f"{PROGRAM} "):
        return started
    return os.environ.get(STARTED_AS) if module == _LAUNCHED else None


def refusal(module: str, message: object) -> SystemExit:
    """The end of a command because something has to be changed first: exit code 2, after one line. To be raised."""
    print(f"{speaker(module)}: error: {message}", file=sys.stderr)
    end = SystemExit(str(message))
    end.code = 2
    return end
