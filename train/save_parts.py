"""The pieces of a save: its folders, the thread that writes, and what all processes know of it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from train import watchdog
from train.durable import FileRecord, move
from train.snapshot import CopyMemory


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
            self.errors.append(f"{type(error).__name__}: {error}")

    def do(self, write: Callable[..., Any], value: Any, *args: Any, **kwargs: Any) -> None:
        """Call `write(value, ...)`: with a copy of the value in the background, or at once if it is a single object."""
        with self.noting():
            if self.memory and isinstance(value, dict):
                value = self.memory.snapshot(value)
                self.tasks.append(lambda: write(value, *args, **kwargs))
            else:
                write(value, *args, **kwargs)

    def do_with(self, write: Callable[..., Any], own: Any) -> None:
        """Call `write(own)`, in the background or at once; nobody else holds or changes `own`."""
        with self.noting():
            if self.memory:
                self.tasks.append(lambda: write(own))
            else:
                write(own)


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


def gather(value: Any) -> list[Any]:
    """The value of each process, in order. Every process must call it."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def wait_for_writers(writer: Writer, device: Any) -> None:
    """Wait until the writers of all processes are done. Every process must call it. No process waits for another's
    files inside one collective operation, which has a limit of time, and every file written is a sign of life."""
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


def estimate_size(model: Any, args: Any) -> int:
    """Bytes that a first checkpoint takes at least: the weights, and two states of each trained weight."""
    per_state = 1 if "8bit" in str(args.optim) else 4
    total = 0
    for parameter in model.parameters():
        number = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves nothing in the parameter itself
        total += number * parameter.element_size() + (2 * per_state * number if parameter.requires_grad else 0)
    return total


def largest_part(model: Any, args: Any, is_sharded: bool) -> float:
    """Bytes about that the first process writes of a checkpoint: its part of what is sharded, and all weights."""
    total = 2 * estimate_size(model, args)
    if not is_sharded:
        return total
    weights = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in model.parameters())
    return weights + total / args.world_size


def estimate_seconds(size: float, folder: Path) -> float:
    """About how long this process writes `size` bytes there, by the speed of a small file.

    As if all processes could write as fast at the same time, so it may take longer; it does not take much less.
    """
    block, file = bytes(16 * 2**20), folder / ".speed"
    began = time.perf_counter()
    try:
        with file.open("wb") as probe:
            probe.write(block)
            probe.flush()
            os.fsync(probe.fileno())
    finally:
        file.unlink(missing_ok=True)
    return size / len(block) * (time.perf_counter() - began)


def rows_per_step(args: Any) -> int:
    """Packed rows of one optimizer step over all processes."""
    return args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps
