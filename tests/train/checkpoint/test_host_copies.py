"""train.checkpoint.host_copies: copies that no longer change, and save as the original does."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from train.checkpoint.host_copies import CopyMemory, available_memory, pinned_size
from train.checkpoint.pending_save import Best, Save


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
    assert sum(buffer.nbytes() for waiting in memory._free.values() for buffer in waiting) == memory.size


@pytest.mark.parametrize(
    ("size", "taken"), [(0, 0), (1, 1), (512, 512), (513, 1024), (3 * 2**30, 2**32), (2**33, 2**33)]
)
def test_a_pinned_buffer_takes_a_power_of_two(size, taken):
    assert pinned_size(size) == taken


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_size_is_what_the_buffers_take(device, monkeypatch):
    """700 and 300 bytes; only memory that a GPU reaches directly is rounded."""

    def take(self, storage):  # as `_take` does, but for the pinning, which needs a GPU
        buffer = torch.UntypedStorage(storage.nbytes())
        self._lent.append(((storage.nbytes(), device == "cuda"), buffer))
        return buffer

    monkeypatch.setattr(CopyMemory, "_take", take)
    memory = CopyMemory()
    memory.snapshot({"a": torch.zeros(700, dtype=torch.uint8), "b": torch.zeros(300, dtype=torch.uint8)})
    memory.release()
    assert memory.size == {"cpu": 1000, "cuda": 1024 + 512}[device]


@pytest.mark.parametrize("in_background", [True, False])
def test_the_device_is_waited_for_before_anything_is_read(in_background, states, monkeypatch, tmp_path):
    """States of paged optimizers look like the host's own and are read without a wait."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    copy = CopyMemory._copy_tensor
    monkeypatch.setattr(CopyMemory, "_copy_tensor", lambda *args: done.append("read") or copy(*args))
    memory = CopyMemory() if in_background else None
    save = Save(1, tmp_path, tmp_path, {}, Best(), memory)
    save.do(lambda value: done.append("write"), states)
    assert not save.errors
    assert done[:2] == ["wait", "read" if in_background else "write"] and done.count("wait") == 1


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


def test_a_modules_state_keeps_the_versions_that_loading_reads():
    """torch passes them beside the entries of a state_dict: without them an old format would be taken for a new one."""
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).state_dict()
    copy = CopyMemory().snapshot({"model": state})["model"]
    assert type(copy) is OrderedDict and copy._metadata == state._metadata and copy._metadata["0"]["version"] == 2


def test_a_tensor_that_takes_gradients_is_one_in_the_copy_too():
    value = {name: torch.ones(2, requires_grad=name == "trained") for name in ("trained", "frozen")}
    copy = CopyMemory().snapshot(value)
    assert {name: tensor.requires_grad for name, tensor in copy.items()} == {"trained": True, "frozen": False}


def test_a_limit_of_an_outer_control_group_holds_too(tmp_path, monkeypatch):
    """As of a SLURM job whose steps have groups of their own."""
    (tmp_path / "job/step").mkdir(parents=True)
    read = Path.read_text
    own = Path("/proc/self/cgroup")
    monkeypatch.setattr(Path, "read_text", lambda file, *args: "0::/job/step\n" if file == own else read(file, *args))
    for group, limit in (("job/step", "max"), ("job", "7000")):
        (tmp_path / group / "memory.max").write_text(limit)
        (tmp_path / group / "memory.current").write_text("3000")
        (tmp_path / group / "memory.stat").write_text("")
    assert available_memory(tmp_path / "absent", tmp_path) == 4000


def test_what_is_written_later_is_what_was_saved(tmp_path):
    """Training goes on between the save and the write, and changes the states."""
    states, written = {"weight": torch.zeros(3)}, []
    save = Save(1, tmp_path, tmp_path, {}, Best(), CopyMemory())
    save.do(lambda value, *rest: written.append((value["weight"].tolist(), *rest)), states, "to here")
    states["weight"] += 1
    assert not written and not save.errors
    for task in save.tasks:
        task()
    assert written == [([0.0, 0.0, 0.0], "to here")]
