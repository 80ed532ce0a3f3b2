"""What the main thread runs at the moment, and whether it waits there for other ranks or for its device."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

# In these, a frame anywhere on the stack is part of an operation of all ranks.
_COLLECTIVES = (
    "torch.distributed.distributed_c10d",
    "torch.distributed.rendezvous",
    "torch.distributed._functional_collectives",
    "deepspeed.comm.",
)
# Innermost frames that wait in native code: for the device, or for gradients that are reduced in the backward pass.
_WAITING = {
    ("torch.autograd.graph", "_engine_run_backward"),
    ("train.loop.bad_steps", "_values"),
    ("train.run.distributed", "all_reduce_max"),
    ("train.checkpoint.pending_save", "wait_for_writers"),
    ("train.loop.metrics", "gather"),
}


def main_thread() -> tuple[str, bool]:
    """Its innermost frame in words, with the innermost of ours where that is another; and whether it waits."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = list(_outwards(frame))
    if not frames:
        return "", False
    ours = next((one for one in frames if _module(one).split(".")[0] == "train"), None)
    where = _describe(frames[0])
    if ours not in (None, frames[0]):
        where += f", called from {_describe(ours)}"
    return where, _waits(frames)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _describe(frame: FrameType) -> str:
    return f"{_module(frame)}.{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _waits(frames: list[FrameType]) -> bool:
    if (_module(frames[0]), frames[0].f_code.co_name) in _WAITING:
        return True
    return any(f"{_module(frame)}.".startswith(_COLLECTIVES) for frame in frames)
