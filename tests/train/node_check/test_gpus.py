"""The GPUs of a node, by stand-ins for the driver's tools and for the processes that use a GPU."""

from __future__ import annotations

import json

import pytest

from tests.support.node_stand_ins import BUSES, UUIDS, Machine, command
from train.node_check import amd, gpus, nvidia
from train.node_check.findings import Node
from train.node_check.gpus import look_at_gpus

MIG = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def looked(machine, monkeypatch, expected: int | None = 2) -> Node:
    node = Node("n0")
    machine.write(monkeypatch)
    look_at_gpus(node, expected)
    return node


def test_sound_gpus(machine, monkeypatch):
    node = looked(machine, monkeypatch)
    assert (node.problems, node.notes) == ([], [])
    assert node.versions == {"CUDA": "13.0", "driver": "580.82.07"}
    first = node.gpus[0]
    assert (first.bus, first.tflops, first.copy_gbs, first.held_mib) == ("0000:1b:00.0", 700.0, 2900.0, 1)
    assert (first.ecc_uncorrected, first.remaps, first.throttled, first.xids) == (0, "", [], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ecc.errors.uncorrected.volatile.total": "3"}, "3 uncorrected memory errors since the driver was loaded"),
        ({"remapped_rows.pending": "Yes"}, "remapping of bad memory rows pending: reset the GPU"),
        ({"remapped_rows.failure": "1"}, "remapping of bad memory rows failed: reset the GPU"),
        ({"retired_pages.pending": "Yes"}, "remapping of bad memory rows pending"),
        ({"gpu_recovery_action": "Reset"}, "its driver asks for: Reset"),
        ({"gpu_recovery_action": "[GPU requires reset]"}, "is lost or asks for a reset"),
        ({"memory.used": "30123"}, "30123 MiB are in use before we start, by a process that this job cannot see"),
        (
            {"clocks_event_reasons.hw_thermal_slowdown": "Active"},
            "the hardware slows it down under load: hw_thermal_slowdown (heat, power or a fault)",
        ),
    ],
)
def test_what_the_driver_says_is_wrong(machine, monkeypatch, change, message):
    machine.smi["gpus"][1] |= change
    (problem,) = looked(machine, monkeypatch).problems
    assert problem.startswith("GPU 1 (0000:2b:00.0): ") and message in problem


def test_who_holds_memory_is_named(machine, monkeypatch):
    machine.smi["gpus"][0]["memory.used"] = "30700"
    app = {"gpu_uuid": UUIDS[0], "pid": "4711", "used_memory": "30000", "process_name": "python3 old.py, 8 GPUs"}
    machine.smi["apps"] = [app, {**app, "pid": "4712", "used_memory": "[N/A]"}]
    (problem,) = looked(machine, monkeypatch).problems
    assert problem.endswith(
        "30700 MiB are in use before we start, by python3 old.py, 8 GPUs (process 4711): 30000 MiB; "
        "python3 old.py, 8 GPUs (process 4712): [N/A] MiB"
    )


def test_errors_of_a_life_are_a_note(machine, monkeypatch):
    machine.smi["gpus"][1]["ecc.errors.uncorrected.aggregate.total"] = "2"
    node = looked(machine, monkeypatch)
    assert not node.problems and node.notes == ["GPU 1 (0000:2b:00.0): 2 uncorrected memory errors in its life"]


@pytest.mark.parametrize("value", ["[N/A]", "[Not Supported]", "N/A"])
def test_a_value_that_the_gpu_has_not(machine, monkeypatch, value):
    for field in ("ecc.errors.uncorrected.volatile.total", "remapped_rows.pending", "gpu_recovery_action"):
        machine.smi["gpus"][0][field] = value
    node = looked(machine, monkeypatch)
    assert not node.problems and node.gpus[0].ecc_uncorrected is None


def test_a_field_that_the_driver_does_not_know_costs_no_other(machine, monkeypatch):
    reasons = [f"clocks_event_reasons.{reason}" for reason in nvidia._REASONS]
    machine.smi["unknown"] = ["gpu_recovery_action", "remapped_rows.pending", *reasons]
    machine.smi["gpus"][0]["ecc.errors.uncorrected.volatile.total"] = "1"
    machine.smi["gpus"][1]["clocks_throttle_reasons.hw_slowdown"] = "Active"  # as drivers before 535 call it
    problems = looked(machine, monkeypatch).problems
    assert len(problems) == 2 and "1 uncorrected" in problems[0] and "load: hw_slowdown" in problems[1]


def test_gpus_are_those_that_torch_sees(machine, monkeypatch):
    """Without device cgroups nvidia-smi lists another job's, too; which are broken is no matter of ours."""
    machine.smi["gpus"][0] |= {"ecc.errors.uncorrected.volatile.total": "9", "memory.used": "70000"}
    machine.log = [(60, f"NVRM: Xid (PCI:{BUSES[0][4:-2]}): 79, pid=1, GPU has fallen off the bus.")]
    machine.child["count"]["devices"] = machine.child["count"]["devices"][1:]
    node = looked(machine, monkeypatch, 1)
    assert node.problems == [] and [gpu.bus for gpu in node.gpus] == ["0000:2b:00.0"]


@pytest.mark.parametrize(("expected", "used"), [(1, 1), (2, 2), (None, 2)])
def test_more_gpus_than_asked_for_are_left_alone(machine, monkeypatch, expected, used):
    node = looked(machine, monkeypatch, expected)
    assert not node.problems and len(node.gpus) == used


def test_too_few_gpus(machine, monkeypatch):
    machine.write(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    node = Node("n0")
    look_at_gpus(node, 3)
    assert node.problems == [
        "expected 3 GPUs (PACKHAUL_GPUS_PER_NODE), found 2 (NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3); "
        "CUDA_VISIBLE_DEVICES: 0,1, in the node: 2"
    ]


def test_a_mig_instance(machine, monkeypatch):
    """It has a uuid of its own, its GPU's memory is others', too, and its own is what torch says."""
    machine.smi["lines"].insert(1, f"  MIG 3g.40gb     Device  0: (UUID: {MIG})")
    machine.smi["gpus"][0] |= {"memory.used": "40000", "ecc.errors.uncorrected.volatile.total": "1"}
    machine.child["count"]["devices"] = [{"name": "H100 MIG 3g.40gb", "uuid": MIG[4:], "bus": "", "memory_mib": 40000}]
    node = looked(machine, monkeypatch, 1)
    (problem,) = node.problems
    assert problem.startswith("GPU 0 (0000:1b:00.0): 1 uncorrected") and node.gpus[0].held_mib == 600
    machine.child["speed"][0]["held_mib"] = 5000
    assert "5000 MiB are in use before we start" in looked(machine, monkeypatch, 1).problems[1]


class TestXids:
    LINE = "NVRM: Xid (PCI:0000:2b:00): {}, pid='<unknown>', name=<unknown>, something"

    def test_a_recent_fault_of_the_hardware(self, machine, monkeypatch):
        machine.log = [(600, self.LINE.format(79))]
        node = looked(machine, monkeypatch)
        (problem,) = node.problems
        assert problem.startswith("GPU 1 (0000:2b:00.0): XID 79, 10 minutes ago: pid='<unknown>'")
        assert node.gpus[1].xids == [79]

    @pytest.mark.parametrize(("ago", "number"), [(600, 31), (600, 13), (90_000, 79)])
    def test_a_program_s_own_and_an_old_one_are_notes(self, machine, monkeypatch, ago, number):
        machine.log = [(ago, self.LINE.format(number)), (ago, "usb 1-1: new device")]
        node = looked(machine, monkeypatch)
        assert not node.problems and f"XID {number}, {ago / 60:.0f} minutes ago" in node.notes[0]

    def test_one_that_is_repeated(self, machine, monkeypatch):
        machine.log = [(60 * ago, self.LINE.format(95)) for ago in range(20, 1, -1)]
        node = looked(machine, monkeypatch)
        (problem,) = node.problems
        assert "XID 95 (19 times), 2 minutes ago" in problem and node.gpus[1].xids == [95]

    def test_a_log_that_cannot_be_read(self, machine, monkeypatch, tmp_path):
        machine.write(monkeypatch)
        command(tmp_path, "dmesg", "import sys; sys.exit('dmesg: read kernel buffer failed: not permitted')", {})
        node = Node("n0")
        look_at_gpus(node, 2)
        assert node.problems == []


class TestWhatHangsOrFails:
    def test_one_gpu_hangs(self, machine, monkeypatch):
        machine.child["speed"][1] = "hang"
        monkeypatch.setattr(gpus, "SPEED_SECONDS", 2.0)
        node = looked(machine, monkeypatch)
        assert node.problems == [
            "GPU 1 (0000:2b:00.0): hangs: a matrix product and a copy took longer than 2 s"
        ] and node.gpus[0].tflops == 700.0  # fmt: skip

    def test_one_gpu_fails_or_is_wrong(self, machine, monkeypatch):
        machine.child["speed"][0] = "RuntimeError: CUDA error: uncorrectable ECC error encountered"
        machine.child["speed"][1]["wrong"] = ["a matrix product"]
        assert looked(machine, monkeypatch).problems == [
            "GPU 0 (0000:1b:00.0): cannot be used: RuntimeError: CUDA error: uncorrectable ECC error encountered",
            "GPU 1 (0000:2b:00.0): a matrix product comes out wrong: have it replaced",
        ]

    def test_nvidia_smi_hangs_and_is_not_asked_again(self, machine, monkeypatch):
        machine.smi["sleep"] = 60
        monkeypatch.setattr(nvidia, "ANSWER_SECONDS", 1)
        node = looked(machine, monkeypatch)
        assert node.problems == ["nvidia-smi does not answer within 1 s: the driver or a GPU hangs"]
        assert node.gpus[1].tflops == 700.0

    def test_nvidia_smi_hangs_while_the_gpus_work(self, machine, monkeypatch):
        machine.child["seconds"] = 0.3
        machine.write(monkeypatch)
        monkeypatch.setattr(nvidia, "throttled", lambda: (_ for _ in ()).throw(nvidia.Hangs("no answer")))
        node = Node("n0")
        look_at_gpus(node, 2)
        assert node.notes == ["while the GPUs work: no answer"]

    def test_nvidia_smi_fails(self, machine, monkeypatch):
        machine.smi["dies"] = "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"
        assert looked(machine, monkeypatch).problems == [f"nvidia-smi fails: {machine.smi['dies']}"]

    def test_no_nvidia_smi_is_a_note_where_torch_has_the_gpus(self, machine, monkeypatch):
        machine.smi = None
        monkeypatch.setattr(nvidia, "COMMAND", "nvidia-smi-that-is-not-here")
        node = looked(machine, monkeypatch)
        assert not node.problems and node.notes[0].startswith("no nvidia-smi-that-is-not-here here")

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ("hang", "torch has not counted the GPUs within 1 s"),
            ("No module", "torch cannot count the GPUs: No module"),
            ([], "torch cannot count the GPUs: and something last"),
        ],
    )
    def test_torch_does_not_count_and_the_driver_s_gpus_are_looked_at(self, machine, monkeypatch, answer, message):
        machine.child["count"] = answer
        machine.smi["gpus"][1]["ecc.errors.uncorrected.volatile.total"] = "4"
        monkeypatch.setattr(gpus, "COUNT_SECONDS", 1.0)
        first, second = looked(machine, monkeypatch).problems
        assert message in first and second.startswith("GPU 1 (0000:2b:00.0): 4 uncorrected")


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), (UUIDS[1][:12], [1]), (MIG, [0]), ("", []), ("7", [])],
)
def test_what_cuda_visible_devices_names(visible, found):
    listed = [nvidia.Listed(uuid, bus, "H100", "580", 0) for uuid, bus in zip(UUIDS[:2], BUSES, strict=False)]
    listed[0].migs = [MIG]
    assert nvidia.chosen(listed, visible) == [listed[index] for index in found]


# As ROCm 6 prints it.
CARD = {
    "Unique ID": "0x9ee4a5b8fe4c4b1d", "PCI Bus": "0000:1B:00.0", "VRAM Total Memory (B)": "205822885888",
    "VRAM Total Used Memory (B)": "3221225472", "Card Series": "AMD Instinct MI300X",
}  # fmt: skip


def test_amd(machine, monkeypatch, tmp_path):
    machine.smi = None
    machine.child["count"] |= {"hip": True, "cuda": "6.3"}
    machine.write(monkeypatch)
    monkeypatch.setattr(nvidia, "COMMAND", "nvidia-smi-that-is-not-here")
    text = json.dumps({"card0": CARD, "system": {"Driver version": "6.10.5", "PID12": "python3, 1, 3145728000, 0, 9"}})
    command(tmp_path, "rocm-smi", "import json; print('WARNING: x\\n' + json.load(open(PLAN)))", text)
    ras = tmp_path / "devices/0000:1b:00.0/ras"
    ras.mkdir(parents=True)
    (ras / "umc_err_count").write_text("ue: 2\nce: 7\n")
    (ras / "gfx_err_count").write_text("ue: 0\nce: 0\n")
    monkeypatch.setattr(amd, "DEVICES", tmp_path / "devices")
    node = Node("n0")
    look_at_gpus(node, 2)
    assert node.versions == {"CUDA": "6.3", "driver": "6.10.5"} and not node.notes
    assert node.problems == [
        "GPU 0 (0000:1b:00.0): 2 uncorrected memory errors since the driver was loaded: reset the GPU",
        "GPU 0 (0000:1b:00.0): 3072 MiB are in use before we start, by python3 (process 12): 3000 MiB",
    ]


def test_rocm_smi_hangs_or_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(amd, "ANSWER_SECONDS", 1)
    script = command(tmp_path, "rocm-smi", "import time; time.sleep(60)", {})
    monkeypatch.setattr(amd, "_QUESTION", [str(script)])
    assert gpus.ask_driver(amd).problems == ["rocm-smi does not answer within 1 s: the driver or a GPU hangs"]
    command(tmp_path, "rocm-smi", "print('ERROR: no amdgpu')", {})
    assert gpus.ask_driver(amd).problems == ["rocm-smi fails: ERROR: no amdgpu"]
