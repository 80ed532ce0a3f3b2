"""What a process leaves when an error or a refusal ends it: a file for the job, and a line or a traceback.

The file is `error-rank{R}.json` in the folder that the processes of a launch share (train.run.spoken). The line is said
once for all ranks that have the same. A message that only says that another process has gone or is late is a
consequence: it is said once, whatever its details are, so that it does not bury the cause.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
import traceback

from data_prep.program_name import speaker
from train.run import spoken, starts
from train.run.atomic_files import write_json_atomically
from train.run.log import ANY_RANK

log = logging.getLogger(__name__)

_CONSEQUENCE = "consequence"  # stands for all of them


def refuse(message: str, exit_code: int, *, consequence: bool = False) -> int:
    """Write down and say why this process ends; its exit code."""
    write_down(message, exit_code, consequence=consequence)
    if spoken.is_mine(_CONSEQUENCE if consequence else message):
        log.error(f"{'' if spoken.rank() == 0 else spoken.who()}{message}", extra=ANY_RANK)
    return exit_code


def write_down(message: str, exit_code: int, *, consequence: bool = False) -> None:
    """Write `error-rank{R}.json`, where there is a folder for it, and how this start ended."""
    starts.end(starts.REFUSED if exit_code == 2 else starts.FAILED, message, consequence=consequence)
    folder = spoken.shared_folder()
    if folder is None:
        return
    rank, host = spoken.rank(), socket.gethostname()
    content = {"time": time.time(), "rank": rank, "host": host, "exit_code": exit_code, "message": message}
    path = folder / f"error-rank{rank}.json"
    try:
        write_json_atomically(path, {**content, "consequence": consequence})
    except OSError as error:
        log.warning(f"{path} cannot be written: {error}", extra=ANY_RANK)


def write_down_traceback(error: Exception, exit_code: int) -> None:
    """Write `error-rank{R}.json` for an error that nothing explains: what it says, then its traceback."""
    said = "".join(traceback.format_exception_only(error))
    write_down(said + "".join(traceback.format_exception(error)), exit_code)


def show_traceback(error: Exception) -> None:
    """Print the traceback: one of the ranks that have the same, with rank and host if it is not rank 0."""
    text = "".join(traceback.format_exception(error))
    if spoken.is_mine(text):
        who = f"{speaker('train.sft')}: error: {spoken.who()}\n" if spoken.rank() else ""
        print(f"{who}{text}", end="", file=sys.stderr, flush=True)
