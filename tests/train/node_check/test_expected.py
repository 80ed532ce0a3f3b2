"""What the job's variables ask for."""

from __future__ import annotations

import pytest

from train.node_check.expected import Expected, expected_of

JOB = {
    "SLURM_NODEID": "0", "PACKHAUL_NODE_NAMES": "n0", "PACKHAUL_OUTPUT_DIR": "runs/x", "PACKHAUL_TOKEN": ".visible",
    "PACKHAUL_GPUS_PER_NODE": "8",
}  # fmt: skip


def test_the_least():
    assert expected_of(JOB) == Expected(
        gpus=8, processes=8, min_free_gib=20.0, shared_dirs=("runs/x",), token=".visible", min_speed=0.85
    )


def test_all():
    given = {"PACKHAUL_SHARED_DIRS": ". /scratch", "PACKHAUL_MIN_FREE_GIB": "5", "PACKHAUL_PROCS_PER_NODE": "4"}
    given |= {"PACKHAUL_NETWORK_INTERFACE": "ib0,ib1", "PACKHAUL_MAIN_IP": "n0", "PACKHAUL_MIN_ALLREDUCE_GBPS": "40"}
    given |= {"PACKHAUL_DATA_DIR": "shards", "PACKHAUL_MODEL_DIR": "m", "PACKHAUL_MIN_GPU_SPEED": "0"}
    assert expected_of({**JOB, **given}) == Expected(
        gpus=8, processes=4, min_free_gib=5, shared_dirs=(".", "/scratch", "runs/x"), token=".visible",
        data_dir="shards", model_dir="m", interfaces=("ib0", "ib1"), main_host="n0", min_speed=0, min_all_reduce=40,
    )  # fmt: skip


def test_names_with_blanks():
    given = {"PACKHAUL_SHARED_DIRS": "a b", "PACKHAUL_SHARED_DIRS_JSON": '["a b", "/c"]'}
    assert expected_of({**JOB, **given}).shared_dirs == ("a b", "/c", "runs/x")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"PACKHAUL_SHARED_DIRS_JSON": "a b"},
            "PACKHAUL_SHARED_DIRS_JSON: expected a JSON list of folders, found 'a b'",
        ),
        ({"PACKHAUL_SHARED_DIRS_JSON": "[1]"}, "expected a JSON list of folders"),
        ({"PACKHAUL_MIN_ALLREDUCE_GBPS": "fast"}, "PACKHAUL_MIN_ALLREDUCE_GBPS: expected a number, found 'fast'"),
    ],
)
def test_malformed(given, message):
    with pytest.raises(ValueError) as error:
        expected_of({**JOB, **given})
    assert message in str(error.value)


def test_where_nodes_meet():
    with pytest.raises(ValueError, match=r"^PACKHAUL_MAIN_IP, PACKHAUL_MAIN_PORT not set"):
        expected_of({**JOB, "PACKHAUL_NODE_NAMES": "n0 n1"})


@pytest.mark.parametrize("name", JOB)
def test_absent(name):
    with pytest.raises(ValueError, match=f"^{name} not set: this runs in a step of a job"):
        expected_of({key: value for key, value in JOB.items() if key != name})
