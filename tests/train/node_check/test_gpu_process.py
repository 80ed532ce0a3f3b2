"""The processes that use a GPU, on a CPU that stands in for one."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT
from tests.gpu import stand_in_gpu
from tests.gpu.stand_in_gpu import CpuDevice
from train.node_check import gpu_process
from train.node_check.adding_up import Sum, World, add_up_here, gather, line, too_slow
from train.node_check.gpu_process import speed


class Clock(CpuDevice):
    """Every call takes as long as the test says."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.each = seconds

    def seconds(self, work, times):
        work()
        return self.each * times


def test_speed_is_work_by_time():
    found = speed(Clock(1e-3))
    assert found["tflops"] == pytest.approx(2 * 64**3 / 1e-3 / 1e12, abs=1e-4)
    assert found["copy_gbs"] == pytest.approx(2 * 2**17 / 1e-3 / 1e9, abs=1e-2)
    assert (found["held_mib"], found["wrong"]) == (0, [])


def test_a_real_clock():
    found = speed(CpuDevice())
    assert found["copy_gbs"] > 0 and found["wrong"] == []


@pytest.mark.parametrize("what", ["a matrix product", "a copy in its memory"])
def test_what_comes_out_wrong(what):
    class Broken(Clock):
        def seconds(self, work, times):
            out = work()
            if (out.dtype == torch.uint8) == (what == "a copy in its memory"):
                out.view(-1)[0] += 1
            return self.each * times

    assert speed(Broken(1e-3))["wrong"] == [what]


def test_equal_products_are_not_asked_of_who_does_not_promise_them():
    class Other(Clock):
        def seconds(self, work, times):
            out = work()
            if out.dtype == torch.float32:
                out.view(-1)[0] += 1
            return self.each * times

    device = Other(1e-3)
    device.repeatable = False
    assert speed(device)["wrong"] == []


def test_what_torch_sees(monkeypatch):
    numbers = {"pci_domain_id": 0, "pci_bus_id": 0x3B, "pci_device_id": 0}
    properties = SimpleNamespace(name="H100", uuid="0000-1", total_memory=80 * 2**30, **numbers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    (device,) = gpu_process.count()["devices"]
    assert device == {"name": "H100", "uuid": "0000-1", "bus": "0000:3b:00.0", "memory_mib": 81920}
    del properties.pci_bus_id  # older torch
    assert gpu_process.count()["devices"][0]["bus"] == ""


def test_a_device_of_cuda(monkeypatch):
    """Its clock and its choices, with CUDA's calls replaced."""
    calls = []
    event = SimpleNamespace(record=lambda: 0, synchronize=lambda: calls.append("waited"), elapsed_time=lambda last: 500)
    for name, stand_in in {
        "set_device": calls.append, "mem_get_info": lambda index: (60 * 2**30, 80 * 2**30),
        "Event": lambda enable_timing: event, "get_device_capability": lambda device: (7, 5),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    device = gpu_process.Device(3)
    assert (device.held_mib, device.edge, device.dtype, device.name.index) == (20480, 8192, torch.float16, 3)
    assert device.seconds(lambda: calls.append("work"), 2) == 0.5
    assert calls == [3, "work", "work", "waited"]


def test_two_processes_add_up(monkeypatch, capfd):
    """As on a node with two GPUs: each a process of its own that knows the store's address."""
    from train.check_nodes import own_world
    from train.node_check import adding_up

    monkeypatch.setattr(adding_up, "CHILD", stand_in_gpu.CHILD)
    monkeypatch.chdir(ROOT)
    world = own_world(["n0"], 2)
    own = add_up_here(world)
    assert own.problems == [] and own.result["backend"] == "gloo" and own.result["gbs"] > 0
    assert line(world, own.result).startswith("1 node adds up 15 MiB by gloo in ")
    assert gather(world, own) == {}


def test_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "train.node_check.gpu_process", "count"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert set(json.loads(done.stdout.splitlines()[-1])) == {"devices", "hip", "cuda"}


def test_a_slow_sum():
    result = {"mib": 256, "seconds": 0.1, "gbs": 5.0, "backend": "nccl", "right": True}
    assert too_slow(result, 0) is None and too_slow(result, 5.0) is None
    assert "reaches 5 GB/s, 40 expected (PACKHAUL_MIN_ALLREDUCE_GBPS)" in str(too_slow(result, 40))
    world = World(None, "h", 1, ["a", "b"], 0, 8)
    assert line(world, result) == (
        "2 nodes add up 256 MiB by nccl in 0.100 s: 5 GB/s (16 processes, one for each GPU)"
    )  # fmt: skip
    assert Sum().problems == []
