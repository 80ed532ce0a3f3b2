"""The call to a GPU machine, rehearsed on a CPU: every stage with tiny models, and a stand-in for torch's kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.gpu import figures
from tests.gpu.stages import STAGES
from tests.support.training import kill

CHECKS = [stage.name for stage in STAGES if "bench_gpu" not in stage.module[0]]
MEASURED = [stage.name for stage in STAGES if stage.name not in CHECKS]
SKIPPED = {"test_liger_kernels", "test_fsdp2_with_one_process"}  # an absent package; what only a GPU has
LIMIT = 1000  # seconds; a machine at rest takes less than 120, and a busy one has taken 560


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> dict:
    """Figures of all stages by name, from two calls side by side."""
    folder = tmp_path_factory.mktemp("rehearsal")
    calls = [begin(folder, part, names) for part, names in (("checks", CHECKS), ("measured", MEASURED))]
    try:
        for call in calls:
            call.wait(LIMIT + 60)
    finally:
        for call in calls:
            kill(call)
    parts = [folder / part for part in ("checks", "measured")]
    entries = [entry for part in parts for entry in figures.read(part / "figures.jsonl")]
    logs = {part.name: (part / "log.txt").read_text() for part in parts}
    return {"logs": logs, **{entry["stage"]: entry for entry in entries}}


def begin(folder, part: str, names: list[str]) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "tests.gpu.run",
        "--rehearse",
        "--state",
        str(folder / "state"),
        str(LIMIT),
        *names,
    ]
    environment = {**os.environ, "OUT": str(folder / part)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_stage(name, rehearsed):
    entry, log = rehearsed.get(name, {}), rehearsed["logs"]["checks" if name in CHECKS else "measured"]
    stage = next(stage for stage in STAGES if stage.name == name)
    own = log.partition(f"=== python {' '.join(stage.command(True))}\n")[2].partition("\n=== python")[0]
    assert entry.get("code") == 0, f"{str(entry)[:1500]}\n{own[-5000:]}"


def test_checks_found_what_they_should(rehearsed):
    """Nothing else is skipped: a test that skips itself would look like one that passes."""
    outcomes = {**rehearsed["kernels"]["result"], **rehearsed["training"]["result"]}
    assert len(outcomes) > 70 and set(outcomes.values()) <= {"passed", "skipped"}
    assert {name for name, outcome in outcomes.items() if outcome == "skipped"} <= SKIPPED
    assert set(rehearsed["node_check"]["result"]) == {"gpu0", "gpu1", "node"}
    assert rehearsed["node_check"]["result"]["node"]["sum"]["right"] is True
    assert set(rehearsed["smoke"]["result"]) >= {
        "kernel",
        "ceilings",
        "loss_head",
        "optimizer",
        "snapshot",
        "pinning",
        "answers",
    }


@pytest.mark.parametrize("name", [name for name in MEASURED if name != "full_liger"])
def test_measurement(name, rehearsed):
    found, stage = rehearsed[name]["result"], next(stage for stage in STAGES if stage.name == name)
    way = stage.module[3]
    assert found["way"] == way and found["rows_per_step"] == 2
    # The stand-in was called wherever it says varlen: bench_gpu.measure refuses what did not.
    assert found["attention"] == ("sdpa" if way in ("trl_packed", "trl_padded") else "varlen")
    assert (
        0.4 < found["trained_tokens_per_second"] / found["tokens_per_second"] < 0.95
    )  # completions only, in every way
    assert found["estimated_gib"] > 0 and found["step_seconds"] > 0


def test_what_single_measurements_add(rehearsed):
    assert rehearsed["save"]["result"]["save_stall_seconds"]
    assert rehearsed["full_compiled"]["result"]["graphs"] > 0
    assert rehearsed["full_profile"]["result"]["profile"]["ms_by_kind"]["matrix products"] > 0
    assert "varlen" in rehearsed["logs"]["measured"] and "DEEPSPEED" in rehearsed["logs"]["measured"]
