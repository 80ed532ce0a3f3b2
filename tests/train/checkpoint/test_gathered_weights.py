"""train.checkpoint.gathered_weights: one tensor at a time, in memory or on disk."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.checkpoint import gathered_weights
from train.checkpoint.gathered_weights import gather, keep_for, on_disk


class Sharded(torch.Tensor):
    """Stands for a DTensor: gathered, it makes a new tensor; how many of those live is counted."""

    live: ClassVar[list[weakref.ref]] = []
    most = 0

    def full_tensor(self) -> torch.Tensor:
        whole = torch.Tensor(self).detach().clone()
        Sharded.live.append(weakref.ref(whole))
        Sharded.most = max(Sharded.most, sum(one() is not None for one in Sharded.live))
        return whole


@pytest.fixture
def states():
    Sharded.live, Sharded.most = [], 0
    made = {f"w{i}": torch.arange(12.0).view(3, 4).add(i).as_subclass(Sharded) for i in range(5)}
    return {**made, "plain": torch.ones(2, dtype=torch.bfloat16), "empty": torch.empty(0), "extra": {"a": 1}}


def test_another_rank_holds_one_tensor_at_a_time(states):
    assert gather(states, None) == {} and Sharded.most == 1


def test_on_disk_no_more_than_one_is_in_memory(states, tmp_path, monkeypatch):
    monkeypatch.setattr(gathered_weights, "available_memory", lambda: 100)
    found = gather(states, keep_for(states, tmp_path))
    assert Sharded.most == 1 and found.pop("extra") == {"a": 1}
    assert not list(tmp_path.iterdir())  # the files have no names, so that none is left by a killed process
    save_file(found, tmp_path / "model.safetensors")
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == found.keys()
    assert all(torch.equal(written[name], torch.Tensor(states[name]).to(states[name].dtype)) for name in written)


def test_in_memory_where_there_is_enough(states, tmp_path, monkeypatch):
    monkeypatch.setattr(gathered_weights, "on_disk", lambda *_: pytest.fail("on disk"))
    found = gather(states, keep_for(states, tmp_path))
    assert torch.equal(found["w1"], torch.arange(12.0).view(3, 4) + 1)


def test_the_space_is_given_back_with_the_tensor(tmp_path):
    tensor = on_disk(torch.ones(1000), tmp_path)
    assert _mapped(tmp_path) == 1 and tensor.sum() == 1000
    del tensor
    gc.collect()
    assert _mapped(tmp_path) == 0


def test_a_full_disk_is_an_error_and_no_killed_process(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gathered_weights.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        on_disk(torch.ones(10), tmp_path)
    assert not list(tmp_path.iterdir())


def _mapped(folder) -> int:
    """Files of a folder that this process has mapped."""
    return Path("/proc/self/maps").read_text().count(f"{folder}/.gathered-")
