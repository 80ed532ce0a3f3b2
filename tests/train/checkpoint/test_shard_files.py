"""train.checkpoint.shard_files: where sharded states lie, and whole tensors read from them in bounded memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME

from train.checkpoint import shard_files


def test_the_folders_are_those_of_accelerate():
    assert (f"{FSDP_MODEL_NAME}_0", f"{OPTIMIZER_NAME}_0") == (shard_files.MODEL, shard_files.OPTIMIZER)


def memory(name: str) -> int:
    """Bytes of this process: VmRSS now, or VmHWM at most."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_model_is_read_with_one_tensor_more_in_memory(tmp_path):
    states = {f"layers.{i}.weight": torch.randn(1024, 2048, generator=torch.manual_seed(i)) for i in range(16)}
    states["half"] = torch.ones(5, dtype=torch.bfloat16)
    size = sum(tensor.nbytes for tensor in states.values())
    dcp.save({"model": states}, storage_writer=dcp.FileSystemWriter(tmp_path / shard_files.MODEL), no_dist=True)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
    except OSError:
        pytest.skip("the peak of memory cannot be set back here")
    before = memory("VmRSS")
    found = shard_files.read_model(tmp_path)
    assert memory("VmHWM") - before < 1.3 * size
    assert found.keys() == states.keys()
    assert all(torch.equal(found[name], states[name]) and found[name].dtype == states[name].dtype for name in states)
