"""The lock on a run directory: two jobs in it would destroy each other's checkpoints.

flock(2) on `.lock` keeps processes of one machine apart, and those of all machines where the file system has such
locks. What it says about other machines cannot be relied on, so each holder also makes a file `.lock-holder-N` and
touches it (data_prep.lock_holders). Only one process can make the next number, which is how a dead holder's lock is
taken over. A holder that ends marks its file as released; the next one removes it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from data_prep import lock_holders
from train.run import last_words
from train.run.atomic_files import write_json_atomically

log = logging.getLogger(__name__)

FLOCK = ".lock"
_HOLDER = re.compile(r"\.lock-holder-(\d+)")
_CHILDREN = 10.0  # seconds that the workers of a killed holder, which have its flock too, may take to end
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


class RunLock:
    """A lock that is held, until `close` or the end of the process."""

    def __init__(self, file: IO[str], holder: Path):
        self._file, self._holder = file, holder
        self._beat = lock_holders.Beat(holder, self._lost)
        self._beat.start()

    def close(self) -> None:
        """Let go."""
        self._beat.stop()
        with suppress(OSError):  # the run directory may be gone, or not be writable any more
            if self._holder.exists():
                write_json_atomically(self._holder, {**lock_holders.read(self._holder), "released": True})
        self._file.close()

    def _lost(self) -> None:
        """End the process if another job has taken the run directory over, as it saw no touch for a while."""
        newest = _newest(self._holder.parent)
        if newest and _number(newest) > _number(self._holder):
            other = lock_holders.described(lock_holders.read(newest))
            problem = (
                f"{newest.parent} was taken over by another job ({other}): this one stops, before both write there"
            )
            os._exit(last_words.refuse(problem, 2))

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def lock(run_dir: Path) -> RunLock:
    """Hold the run directory.

    Raises:
        ValueError: another job holds it, such as processes that outlived their killed launcher.
    """
    file = (run_dir / FLOCK).open("a+")
    try:
        _flock(file, run_dir)
        return RunLock(file, _take(run_dir))
    except BaseException:
        file.close()
        raise


def _flock(file: IO[str], run_dir: Path) -> None:
    deadline = time.monotonic() + _CHILDREN
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                return None  # a file system without locks: the holder's file counts alone
        newest = _newest(run_dir)
        is_dead = newest is not None and lock_holders.is_known_alive(lock_holders.read(newest)) is False
        if not is_dead or time.monotonic() > deadline:
            raise _refusal(run_dir, newest)
        time.sleep(0.1)


def _take(run_dir: Path) -> Path:
    """This process's own holder file, the one with the highest number."""
    while True:
        newest = _newest(run_dir)
        if newest:
            _check_free(run_dir, newest)
        mine = run_dir / f".lock-holder-{_number(newest) + 1}"
        if not _create(mine):
            continue  # another start was faster
        if _newest(run_dir) != mine:  # it was so much faster that its lock was taken over again
            mine.unlink(missing_ok=True)
            continue
        for older in _holders(run_dir)[:-1]:
            older.unlink(missing_ok=True)
        return mine


def _check_free(run_dir: Path, newest: Path) -> None:
    """
    Raises:
        ValueError: its holder still runs.
    """
    holder = lock_holders.read(newest)
    if holder.get("released") or not newest.exists():
        return
    if lock_holders.is_alive(newest, log.info):
        raise _refusal(run_dir, newest)
    log.info(f"{run_dir} was held by {lock_holders.described(holder)}, which no longer runs: taken over")


def _create(path: Path) -> bool:
    """Whether the file was not there, and is ours now."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(lock_holders.me()))
        return True
    except FileExistsError:
        return False


def _holders(run_dir: Path) -> list[Path]:
    """Holders' files, oldest first."""
    return sorted((path for path in run_dir.iterdir() if _HOLDER.fullmatch(path.name)), key=_number)


def _newest(run_dir: Path) -> Path | None:
    return next(reversed(_holders(run_dir)), None)


def _number(path: Path | None) -> int:
    found = _HOLDER.fullmatch(path.name) if path else None
    return int(found[1]) if found else 0


def _refusal(run_dir: Path, newest: Path | None) -> ValueError:
    who = lock_holders.described(lock_holders.read(newest) if newest else {})
    return ValueError(
        f"{run_dir} is in use by another job ({who}): two jobs would destroy each other's checkpoints. Stop that one, "
        "or choose another output_dir"
    )
