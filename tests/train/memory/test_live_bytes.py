"""Bytes alive are counted by storage, from the operation that makes them until they are freed."""

from __future__ import annotations

import torch

from train.memory.live_bytes import LiveBytes


def test_storages_count_once_and_until_they_are_freed():
    weight = torch.ones(1000)
    with LiveBytes([weight]) as live:
        first = torch.zeros(100)
        view = first.view(10, 10)
        assert live.now == 400
        weight.mul_(2)
        weight.view(10, 100)
        assert live.now == 400
        second = view + 1
        assert live.now == 800
        del first
        assert live.now == 800  # the view holds its storage
        del view
        assert live.now == 400
        live.begin_phase()
        (second * 2).sum()
        assert live.peaks == [800, 800 + 4]
        del second
    assert live.now == 0
