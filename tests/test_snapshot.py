"""train.snapshot: copies that no longer change, and save as the original does."""

from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch

from train.snapshot import CopyMemory, available_memory


def saved(value) -> list:
    """What comes back of a saved state: values, and how much memory lies behind each tensor."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    found = torch.load(buffer, weights_only=False)
    tensors = [found["flat"], found["same"], found["tied"][0], found["tied"][1]["again"], found["half"], found["step"]]
    facts = [(type(t), t.tolist(), t.stride(), t.dtype, t.requires_grad, t.untyped_storage().nbytes()) for t in tensors]
    return [*facts, tensors[2].data_ptr() == tensors[3].data_ptr(), found["plain"], list(found)]


class Scaler:
    """Stands for DeepSpeed's loss scaler: an object that counts on."""

    def __init__(self):
        self.scale = 4


@pytest.fixture
def states():
    flat = torch.arange(1000.0)
    tied = torch.nn.Parameter(torch.ones(3, 4))
    return OrderedDict(
        flat=flat[:900],  # a view: the whole memory is saved
        same=flat[100:200].view(10, 10).t(),
        tied=[tied, {"again": tied}],
        half=torch.ones(7, dtype=torch.bfloat16),
        empty=torch.empty(0),
        step=torch.tensor(3.0),
        plain=(1, "two", None, torch.Size([3])),
        scaler=Scaler(),
    )


def test_a_copy_saves_as_the_original_and_does_not_change(states):
    states.pop("scaler")
    before = saved(states)
    copy = CopyMemory().snapshot(states)
    assert saved(copy) == before
    with torch.no_grad():
        for tensor in (states["flat"], states["tied"][0], states["half"], states["step"]):
            tensor += 1
    assert saved(copy) == before != saved(states)
    assert copy["tied"][0].data_ptr() == copy["tied"][1]["again"].data_ptr()


def test_objects_are_copied_too(states):
    copy = CopyMemory().snapshot(states)
    states["scaler"].scale = 8
    assert copy["scaler"].scale == 4


def test_memory_is_used_again_only_after_release(states):
    memory = CopyMemory()
    first = memory.snapshot(states)
    second = memory.snapshot(states)
    assert first["flat"].data_ptr() != second["flat"].data_ptr()
    used = {first["flat"].data_ptr(), second["flat"].data_ptr()}
    memory.release()
    size = memory.size
    assert memory.snapshot(states)["flat"].data_ptr() in used
    memory.release()
    assert memory.size == size // 2  # what the last save did not need is gone


def test_available_memory_is_the_least_of_computer_and_control_groups(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:  5000 kB\n")
    assert available_memory(meminfo, tmp_path) == 5000 * 1024
    for name, content in (("max", "4000000"), ("current", "3000000"), ("stat", "anon 5\ninactive_file 500000\n")):
        (tmp_path / f"memory.{name}").write_text(content)
    assert available_memory(meminfo, tmp_path) == 1_500_000
    (tmp_path / "memory.max").write_text("max")
    assert available_memory(meminfo, tmp_path) == 5000 * 1024
    assert available_memory() > 0
