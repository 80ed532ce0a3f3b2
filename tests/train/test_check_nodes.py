"""The check of the nodes as a whole: one node in this process, two in processes of their own. See tests/cluster."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.node_stand_ins import Machine
from tests.support.training import kill
from train import check_nodes
from train.node_check import meeting

# The check, where the first node is this computer, which a name that means it would not be.
NODE = "import sys; from train import check_nodes; from train.node_check import host; "
NODE += "host.name_problems = lambda *_: (); sys.exit(check_nodes.main([]))"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The variables of a job with one node and no GPUs, also set in this process."""
    for folder in ("run", "shared", "log"):
        (tmp_path / folder).mkdir()
    for folder in ("run", "shared"):
        (tmp_path / folder / "token").touch()
    variables = {
        "SLURM_NODEID": "0", "PACKHAUL_NODE_NAMES": "n0", "PACKHAUL_GPUS_PER_NODE": "0", "PACKHAUL_TOKEN": "token",
        "PACKHAUL_PROCS_PER_NODE": "1", "PACKHAUL_MIN_FREE_GIB": "0", "PACKHAUL_OUTPUT_DIR": str(tmp_path / "run"),
        "PACKHAUL_SHARED_DIRS": str(tmp_path / "shared"), "PACKHAUL_LOG_DIR": str(tmp_path / "log"),
        "PACKHAUL_NETWORK_INTERFACE": "", "PACKHAUL_MAIN_IP": "127.0.0.1",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def unfit(job) -> dict:
    file = Path(job["PACKHAUL_LOG_DIR"], "unfit.json")
    return json.loads(file.read_text()) if file.exists() else {}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class TestOneNode:
    def test_fit(self, job, capsys):
        assert check_nodes.main([]) == 0
        said = capsys.readouterr().out
        assert "packhaul: node n0: no GPUs, python 3." in said and "1 node(s) looked at, none lacks anything" in said
        assert unfit(job) == {}

    def test_unfit(self, job, capsys, monkeypatch):
        monkeypatch.setenv("PACKHAUL_NETWORK_INTERFACE", "ib7")
        assert check_nodes.main([]) == 1
        (problem,) = unfit(job)["n0"]
        assert problem.startswith("no network interface ib7")
        assert capsys.readouterr().out.count(f"packhaul: node n0: {problem}\n") == 1

    def test_without_a_log_folder(self, job, monkeypatch):
        monkeypatch.setenv("PACKHAUL_NETWORK_INTERFACE", "ib7")
        monkeypatch.delenv("PACKHAUL_LOG_DIR")
        assert check_nodes.main([]) == 1 and unfit(job) == {}

    def test_a_log_folder_that_cannot_be_written(self, job, monkeypatch, caplog):
        monkeypatch.setenv("PACKHAUL_NETWORK_INTERFACE", "ib7")
        monkeypatch.setenv("PACKHAUL_LOG_DIR", "/proc/no/such/folder")
        monkeypatch.setattr(logging.getLogger("train"), "propagate", True)  # as before a run set up its lines
        assert check_nodes.main([]) == 1
        assert "unfit.json is not written" in caplog.text

    @pytest.mark.parametrize(
        ("sums", "least", "code", "said"),
        [
            (
                [True, True],
                "0",
                0,
                "1 node adds up 256 MiB by nccl in 0.002 s: 250 GB/s (2 processes, one for each GPU)",
            ),
            ([True, True], "300", 1, "reaches 250 GB/s, 300 expected (PACKHAUL_MIN_ALLREDUCE_GBPS)"),
            ([True, False], "0", 1, "node n0: GPU 1: a sum over all GPUs came out wrong"),
            (
                [True, "NCCL error: unhandled"],
                "0",
                1,
                "node n0: GPU 1: the sum over all GPUs fails: NCCL error: unhandled",
            ),
        ],
    )
    def test_with_two_gpus(self, job, tmp_path, monkeypatch, capsys, sums, least, code, said):
        machine = Machine(tmp_path)
        for index, right in enumerate(sums):
            one = machine.child["add_up"][index]
            machine.child["add_up"][index] = right if isinstance(right, str) else {**one, "right": right}
        machine.write(monkeypatch)
        monkeypatch.setenv("PACKHAUL_GPUS_PER_NODE", "2")
        monkeypatch.setenv("PACKHAUL_MIN_ALLREDUCE_GBPS", least)
        assert check_nodes.main([]) == code
        assert said in capsys.readouterr().out
        assert bool(unfit(job)) == (code == 1 and least == "0")  # a slow network is no node's fault


class TestTwoNodes:
    def run(self, job, *, second: dict | None = None) -> tuple[list[int], list[str]]:
        """Exit codes and outputs of both."""
        shared = {**os.environ, "PACKHAUL_NODE_NAMES": "n0 n1", "PACKHAUL_MAIN_PORT": str(free_port())}
        changes = ({"SLURM_NODEID": "0"}, {"SLURM_NODEID": "1", **(second or {})})
        nodes = [
            subprocess.Popen([sys.executable, "-c", NODE], cwd=ROOT, env={**shared, **change}, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for change in changes
        ]  # fmt: skip
        try:
            said = [node.communicate(timeout=300)[0] for node in nodes]
        finally:
            for node in nodes:
                kill(node)
        return [node.returncode for node in nodes], said

    def test_fit(self, job):
        codes, (first, other) = self.run(job)
        assert codes == [0, 0], first + other
        assert "2 node(s) looked at, none lacks anything" in first
        assert "packhaul: 2 nodes add up 15 MiB by gloo in " in first
        assert "GB/s (one process a node, as no GPUs were asked for)" in first
        assert "node n1: no GPUs" in other and unfit(job) == {}

    def test_the_second_lacks_something(self, job, tmp_path):
        codes, (first, other) = self.run(
            job, second={"PACKHAUL_MODEL_DIR": str(tmp_path / "no"), "PACKHAUL_LOG_DIR": ""}
        )
        problem = f"the model folder {tmp_path / 'no'} is missing"
        assert codes == [1, 1] and unfit(job) == {"n1": [problem]}, first + other
        assert f"packhaul: node n1: {problem}" in first and f"packhaul: node n1: {problem}" in other
        assert "the network does not work" not in other


def test_a_node_that_does_not_come(job, capsys, monkeypatch):
    for name, value in {"PACKHAUL_NODE_NAMES": "n0 n1 n2", "PACKHAUL_MAIN_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(check_nodes.Check, "left", lambda self, seconds: 0.5)
    monkeypatch.setattr("train.node_check.host.name_problems", lambda *_: iter(()))
    assert check_nodes.main([]) == 1
    assert list(unfit(job)) == ["n0"] and "no other node reaches it" in capsys.readouterr().out


def test_a_port_that_is_taken(job, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for name, value in {"PACKHAUL_NODE_NAMES": "n0 n1", "PACKHAUL_MAIN_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PACKHAUL_NETWORK_INTERFACE", "ib7")
        assert check_nodes.main([]) == 1
    interface, network = unfit(job)["n0"]
    assert interface.startswith("no network interface ib7") and "address already in use" in network.lower()


def test_a_node_whose_network_does_not_reach_the_first(job, capsys, monkeypatch):
    """Its line about itself comes all the same."""
    changes = {"SLURM_NODEID": "1", "PACKHAUL_NODE_NAMES": "n0 n1", "PACKHAUL_NETWORK_INTERFACE": "ib7"}
    for name, value in {**changes, "PACKHAUL_MAIN_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", -29.0)  # for 1 s
    assert check_nodes.main([]) == 1
    said = capsys.readouterr().out
    assert "packhaul: node n1: no network interface ib7" in said
    assert "packhaul: node n1: the name of the first node, 127.0.0.1, is 127.0.0.1 here, which means this node" in said
    assert "packhaul: node n1: the network does not work: " in said and unfit(job) == {}


class TestGpusOnly:
    def test_table_and_json(self, tmp_path, monkeypatch, capsys):
        for name in ("SLURM_NODEID", "PACKHAUL_NODE_NAMES"):
            monkeypatch.delenv(name, raising=False)
        machine = Machine(tmp_path)
        machine.smi["gpus"][1]["ecc.errors.uncorrected.volatile.total"] = "2"
        machine.write(monkeypatch)
        assert check_nodes.main(["--gpus-only"]) == 1
        lines = capsys.readouterr().out.splitlines()
        head = next(number for number, line in enumerate(lines) if line.startswith("GPU  name"))
        cells = "1 NVIDIA H100 80GB HBM3 0000:2b:00.0 700 2900 1 2 - - -"
        assert " ".join(lines[head + 2].split()) == cells
        found = json.loads(lines[-1])
        assert [gpu["tflops"] for gpu in found["gpus"]] == [700, 700] and len(found["problems"]) == 1
        assert found["sum"] == {} and found["versions"]["driver"] == "580.82.07"

    def test_sound_ones_add_up(self, tmp_path, monkeypatch, capsys):
        Machine(tmp_path).write(monkeypatch)
        assert check_nodes.main(["--gpus-only"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["sum"]["gbs"] == 250

    def test_a_slow_one(self, tmp_path, monkeypatch, capsys):
        machine = Machine(tmp_path)
        machine.child["speed"][1]["tflops"] = 400.0
        machine.write(monkeypatch)
        assert check_nodes.main(["--gpus-only"]) == 1
        assert "GPU 1 (0000:2b:00.0) is slow: 400 TFLOP/s" in capsys.readouterr().out

    def test_without_any(self, tmp_path, monkeypatch, capsys):
        machine = Machine(tmp_path, gpus=0)
        machine.write(monkeypatch)
        assert check_nodes.main(["--gpus-only"]) == 1
        assert "expected at least 1 GPU, found none" in capsys.readouterr().out


def test_outside_a_job_it_says_where_it_belongs(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    with pytest.raises(SystemExit, match="2"):
        check_nodes.main([])
    said = capsys.readouterr().err
    assert "SLURM_NODEID" in said and "--gpus-only" in said
