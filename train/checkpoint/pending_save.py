"""A save under way: its folders, the thread that writes its files, and the wait for the threads of all ranks."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train.checkpoint.host_copies import CopyMemory, wait_for_device
from train.checkpoint.shard_files import Shards
from train.run import watchdog
from train.run.atomic_files import FileRecord, move

_LASTING = tuple(
    f"{kind.__name__}: " for kind in (ValueError, TypeError, AttributeError, KeyError, NotImplementedError)
)


def is_lasting(problem: str) -> bool:
    """Whether a noted error would come again at the next save: no disk is full, something cannot be written at all."""
    return problem.startswith(_LASTING)


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far, by metric_for_best_model."""

    step: int | None = None
    metric: float | None = None
    path: str | None = None


@dataclass
class Save:
    """A checkpoint on its way."""

    step: int
    target: Path  # the folder that all processes fill, before it has its name
    own: Path  # what the Trainer takes for the run directory: this process fills `checkpoint-N` in it
    extra: dict[str, Any]  # for the marker
    best: Best
    memory: CopyMemory | None  # where states are copied, to be written later; None: they are written at once
    begun: float = field(default_factory=time.perf_counter)
    tasks: list[Callable[[], Any]] = field(default_factory=list)  # what is to be written later
    errors: list[str] = field(default_factory=list)
    shards: list[Shards] = field(default_factory=list)  # of sharded states: as many on each rank if none has errors
    writer: Writer | None = None
    stalled: float = 0.0  # seconds that training stood still

    @property
    def files_folder(self) -> Path:
        """The folder that this process fills."""
        return self.own / f"checkpoint-{self.step}"

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note an error instead of raising it: the other processes would wait for this one for ever."""
        try:
            yield
        except Exception as error:
            self.errors.append(_words_of(error))

    def do(self, write: Callable[..., Any], value: Any, *args: Any, **kwargs: Any) -> None:
        """Call `write(value, ...)`: with a copy of the value in the background, or at once if it is a single object."""
        with self.noting():
            if self.memory and isinstance(value, dict):
                value = self.memory.snapshot(value)
                self.tasks.append(lambda: write(value, *args, **kwargs))
            else:
                wait_for_device()
                write(value, *args, **kwargs)

    def do_with(self, write: Callable[..., Any], own: Any) -> None:
        """Call `write(own)`, in the background or at once; nobody else holds or changes `own`."""
        with self.noting():
            if self.memory:
                self.tasks.append(lambda: write(own))
            else:
                write(own)


def _words_of(error: Exception) -> str:
    cause = _system_error(error) or error
    return f"{type(cause).__name__}: {cause}"


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's own error behind one: torch says "unexpected pos" of a file that a full disk has cut."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def make_folders(common: Path, own: Path, step: int) -> str | None:
    """Make the folder that all processes fill, and an empty one for this process; what went wrong, if anything."""
    try:
        shutil.rmtree(own, ignore_errors=True)
        (own / f"checkpoint-{step}").mkdir(parents=True)
        common.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error)
    return None


class Writer(threading.Thread):
    """Writes what is left to write, and brings the files of one process into the common folder and to disk."""

    def __init__(self, save: Save):
        super().__init__(name="checkpoint-writer", daemon=True)
        self.save = save
        self.files: dict[str, FileRecord] = {}  # by path below the folder
        self.progress = 0  # things done so far

    def run(self) -> None:
        """Never raises: the save's `errors` say what went wrong."""
        with self.save.noting():
            try:
                while self.save.tasks:
                    self.save.tasks.pop(0)()
                    self.progress += 1
            finally:  # a failed write must not keep its copies: the next save makes new ones
                self.save.tasks.clear()
                if self.save.memory:
                    self.save.memory.release()
            for file in sorted(p for p in self.save.files_folder.rglob("*") if p.is_file()):
                name = file.relative_to(self.save.files_folder)
                (self.save.target / name).parent.mkdir(parents=True, exist_ok=True)
                self.files[name.as_posix()] = move(file, self.save.target / name)
                self.progress += 1


@contextlib.contextmanager
def intercepting_torch_save(save: Save) -> Iterator[None]:
    """Let the save take what the libraries give to `torch.save`, in this thread and for its own folder."""
    original, thread = torch.save, threading.get_ident()

    def intercept(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        ours = threading.get_ident() == thread and isinstance(f, (str, os.PathLike))
        if ours and Path(f).is_relative_to(save.own):
            save.do(original, obj, f, *args, **kwargs)
        else:
            original(obj, f, *args, **kwargs)

    torch.save = intercept
    try:
        yield
    finally:
        torch.save = original


def wait_for_writers(writer: Writer, device: torch.device) -> None:
    """Wait until the writers of all ranks are done. Every rank must call it.

    Each file written is a sign of life. No rank waits for another's files within one collective operation, as these
    have a time limit.
    """
    watchdog.enter("save", writer.save.step, "files")
    seen = -1
    while True:
        state = torch.tensor([int(writer.is_alive()), writer.progress], device=device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(state)
        alive, progress = state.tolist()
        if progress != seen:
            seen = progress
            watchdog.progress()
        if not alive:
            return
        writer.join(0.2)
