"""What the main thread runs, and whether it waits there."""

from __future__ import annotations

import sys

import pytest

from train.run import thread_frames

WAITS = [
    ("torch.distributed.distributed_c10d", "all_reduce"),
    ("deepspeed.comm.comm", "barrier"),
    ("train.loop.bad_steps", "_values"),
    ("torch.autograd.graph", "_engine_run_backward"),
]
WORKS = [
    ("torch.distributed.fsdp._fully_shard._fsdp_state", "_pre_forward"),  # around a whole forward pass
    ("train.loop.bad_steps", "watch"),
    ("datasets.arrow_dataset", "__getitem__"),
]


@pytest.mark.parametrize(("module", "function"), WAITS + WORKS)
def test_collective_operations_and_the_device_are_waited_for(module, function):
    names = {"__name__": module, "look": lambda: sys._getframe(1)}
    exec(f"def {function}():\n    return look()", names)
    frames = list(thread_frames._outwards(names[function]()))
    assert thread_frames._waits(frames) == ((module, function) in WAITS)


def test_the_innermost_frame_and_the_innermost_of_ours_are_told():
    where, waits = thread_frames.main_thread()
    assert where.startswith("train.run.thread_frames.main_thread (thread_frames.py:") and not waits
