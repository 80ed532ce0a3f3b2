"""A lock on the output folder, so that no two preparations write into it at once; it ends with its process.

A whole preparation, or a stage of one process, excludes all others. The tasks of a job array exclude that, and each a
second one of the same number. Every holder has a file of its own in the work folder, which says who it is and is
touched every few seconds (data_prep.lock_holders), under flock(2): the system lets go of it when the process ends,
however that ends. Some mounts of NFS, Lustre and BeeGFS have no such locks, or only between processes of one machine.
So a holder counts as long as it is known to run, or is touched, whether its file is locked or not.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from data_prep import lock_holders
from data_prep.lock_holders import Beat

Made = TypeVar("Made")
FOLDER = "locks"  # in the work folder
_WHOLE = "whole.lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_TRIES = 10
_CHILDREN = 10.0  # seconds that the children of a killed holder may take to end


@contextmanager
def hold(work: Path, stage: str, task: tuple[int, int]) -> Iterator[None]:
    """Hold the output folder that this is the work folder of, for a stage ("all": for all stages).

    Args:
        task: (index, number) of the task of a job array; the number is 1 outside of one.

    Raises:
        ValueError: another preparation holds it; says which process, where, since when.
    """
    folder = work / FOLDER
    index, number = task
    name = _WHOLE if number == 1 else f"{stage}-{index}-of-{number}.lock"
    what = f"--stage {stage}" if number == 1 else f"--stage {stage} --task-index {index} --num-tasks {number}"
    has_flock = _in_folder(folder, lambda: _has_flock(folder))
    try:
        with _claimed(folder / name, what, has_flock):
            for other in sorted(folder.glob("*.lock")) if name == _WHOLE else [folder / _WHOLE]:
                if other.name != name and _is_held(other, has_flock):
                    raise _refusal(other)
            yield
    finally:
        if number == 1:  # the last task of an array cannot be told
            _remove_if_empty(folder, work, work.parent)


def _in_folder(folder: Path, make: Callable[[], Made]) -> Made:
    """What is made in the folder, which another process may remove at any time until something is in it."""
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return make()
    raise ValueError(f"{folder}: cannot be written into: another process removes it again and again")


def _remove_if_empty(*folders: Path) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _has_flock(folder: Path) -> bool:
    """Whether the file system has locks."""
    probe = folder / f".{socket.gethostname()}.{os.getpid()}.probe"
    try:
        with probe.open("wb") as file:
            return _try_flock(file, fcntl.LOCK_EX) is not None
    finally:
        probe.unlink(missing_ok=True)


def _try_flock(file: IO[Any], kind: int) -> bool | None:
    """Whether we have the lock now; None where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


# A holder's own file.


@contextmanager
def _claimed(path: Path, what: str, has_flock: bool) -> Iterator[None]:
    file = _in_folder(path.parent, lambda: _locked(path) if has_flock else _created(path))
    beat = Beat(path)
    try:
        file.truncate(0)
        file.write(json.dumps(lock_holders.me(what=what)))
        file.flush()
        beat.start()
        yield
    finally:
        beat.stop()
        path.unlink(missing_ok=True)  # the work folder goes before, when all is done
        file.close()


def _locked(path: Path) -> IO[str]:
    """The file under our lock. Between opening and locking, another holder may have removed it."""
    deadline = time.monotonic() + _CHILDREN
    while True:
        file, is_new = _opened(path)
        if not _try_flock(file, fcntl.LOCK_EX):
            file.close()
            if not _is_ending(path, deadline):
                raise _refusal(path)
            continue
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()
    if not is_new and lock_holders.is_alive(path, print):  # on another machine, whose locks do not reach here
        file.close()
        raise _refusal(path)
    return file


def _opened(path: Path) -> tuple[IO[str], bool]:
    """The file, and whether it was not there: only one process of all machines can make it."""
    try:
        return path.open("x+"), True
    except FileExistsError:
        return path.open("a+"), False


def _is_ending(path: Path, deadline: float) -> bool:
    """Whether the holder was killed, and only its children, which end with it, still have its lock; after a moment."""
    if lock_holders.is_known_alive(lock_holders.read(path)) is not False or time.monotonic() > deadline:
        return False
    time.sleep(0.1)
    return True


def _created(path: Path) -> IO[str]:
    """The file, which was not there, or whose holder is gone."""
    while True:
        with suppress(FileExistsError):
            return path.open("x")
        if lock_holders.is_alive(path, print):
            raise _refusal(path)
        path.unlink(missing_ok=True)


# Another's file.


def _is_held(path: Path, has_flock: bool) -> bool:
    deadline = time.monotonic() + _CHILDREN
    try:
        while True:
            with path.open() as file:
                is_locked = has_flock and _try_flock(file, fcntl.LOCK_SH) is False
            if not is_locked:
                return lock_holders.is_alive(path, print)
            if not _is_ending(path, deadline):
                return True
    except FileNotFoundError:
        return False


def _refusal(path: Path) -> ValueError:
    output, holder = path.parent.parent.parent, lock_holders.read(path)
    what = f" ({holder['what']})" if "what" in holder else ""
    return ValueError(
        f"{output} is being prepared by {lock_holders.described(holder)}{what}: wait for it or end it, or choose "
        "another --output"
    )
