"""The peak that bench_fit measures: memory that another thread released is not counted for ever."""

from __future__ import annotations

import threading

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.bench_fit import MIB, peak

ROUNDS = 10


def test_memory_that_is_given_out_again_was_released():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        for _ in range(ROUNDS):
            box = [torch.empty(64 * MIB, dtype=torch.uint8)]
            other = threading.Thread(target=box.clear)
            other.start()
            other.join()
        first = torch.empty(10 * MIB, dtype=torch.uint8)
        del first
        second = torch.empty(10 * MIB, dtype=torch.uint8)
    assert second.numel() == 10 * MIB
    # The last release is not known, nor those whose memory was not given out again, which is malloc's choice.
    by_notes_alone = (64 * ROUNDS + 10) * MIB
    assert 64 * MIB <= peak(watched) <= 0.75 * by_notes_alone
