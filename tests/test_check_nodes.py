"""Looking at the nodes of a job. tests/cluster runs it on real ones."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from train import check_nodes
from train.check_nodes import Expected, Node, compare, gather, look


@pytest.fixture
def expected(tmp_path):
    (tmp_path / "token").touch()
    return Expected(gpus=0, min_free_gib=0, shared_dirs=(str(tmp_path),), token="token", interface="lo")


def change(expected, **changes):
    return Expected(**{**expected.__dict__, **changes})


def test_a_fit_node_has_no_problems(expected):
    assert look(expected).problems == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": "other"}, "is another folder here than on the first node"),
        ({"min_free_gib": 1e9}, "GiB free, 1e+09 expected"),
        ({"interface": "ib7"}, "no network interface ib7 (PACKHAUL_NETWORK_INTERFACE); it has: "),
    ],
)
def test_what_a_node_lacks_is_said(expected, changes, message):
    (problem,) = look(change(expected, **changes)).problems
    assert message in problem


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'H100, 580.1'; echo 'H100, 580.1'", None),
        ("echo 'H100, 580.1'", "expected 2 GPUs, found 1: H100"),
        ("echo 'Unable to determine the device handle'; exit 15", "nvidia-smi fails: Unable to determine"),
        (None, "nvidia-smi does not answer"),
    ],
)
def test_gpus_are_counted(expected, tmp_path, monkeypatch, script, message):
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    problems = look(change(expected, gpus=2)).problems
    assert len(problems) == (message is not None)
    assert message is None or message in problems[0]


def test_the_node_that_differs_is_named():
    nodes = [Node("a", ["H100"], "580.1"), Node("b", ["H100"], "580.1"), Node("c", ["H100"], "550.9")]
    nodes += [Node("d", ["A100"], "580.1", clock=-90)]
    assert compare(nodes[:2]) == []
    assert compare(nodes) == [
        "node d: GPUs A100, most nodes have H100",
        "node c: driver 550.9, most nodes have 580.1",
        "node d: its clock is 90 s behind that of a, 5 s at most expected",
    ]


def test_nodes_are_heard_over_the_network_and_silent_ones_are_named(monkeypatch):
    from torch.distributed import TCPStore

    monkeypatch.setattr(check_nodes, "ANSWER_SECONDS", 2)
    first = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), wait_for_workers=False)

    def answer():
        store = TCPStore("127.0.0.1", first.port, None, False, timedelta(seconds=30))
        gather(store, 1, ["n0", "n1"], Node("n1", problems=["no disk"]))

    thread = threading.Thread(target=answer)
    thread.start()
    nodes = gather(first, 0, ["n0", "n1"], Node("n0"))
    thread.join()
    assert compare(nodes) == ["node n1: no disk"]
    with pytest.raises(TimeoutError, match="n2, n3 did not answer within 2 s: the node hangs"):
        gather(first, 0, ["n0", "n1", "n2", "n3"], Node("n0"))


@pytest.mark.parametrize(("answered", "apart"), [(10.5, 0), (8, -2), (15, 4), (10, 0), (11, 0)])
def test_a_clock_is_only_as_wrong_as_the_answer_proves(answered, apart):
    assert check_nodes._apart(answered, asked=10, heard=11) == apart


def test_outside_a_job_it_says_where_it_belongs(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    monkeypatch.setattr("sys.argv", ["check_nodes"])
    with pytest.raises(SystemExit, match="2"):
        check_nodes.main()
    assert "SLURM_NODEID" in capsys.readouterr().err
