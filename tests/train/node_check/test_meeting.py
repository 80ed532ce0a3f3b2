"""How nodes hear of each other, over a real store."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest

from train.node_check import meeting
from train.node_check.findings import Gpu, Node
from train.node_check.meeting import answer, await_nodes, collect, decide

NAMES = ["n0", "n1", "n2", "n3"]


@pytest.fixture
def first():
    return meeting.own_store()


def other(first):
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", first.port, None, False, timedelta(seconds=30))


def test_nodes_are_heard_over_the_network_and_silent_ones_are_named(first):
    found = Node("n1", [Gpu(0, "H100", tflops=1.5)], problems=["no disk"])

    def tell():
        store = other(first)
        store.set("here1", "")
        answer(store, 1, found, 30)

    first.set("here3", "")  # n3 comes and then hangs, n2 does not come
    thread = threading.Thread(target=tell)
    thread.start()
    await_nodes(first, NAMES, 3)
    nodes, silent = collect(first, NAMES, Node("n0"), 1)
    thread.join()
    assert [node.name for node in nodes] == ["n0", "n1"] and abs(nodes[1].clock) < 5
    assert (nodes[1].gpus, nodes[1].problems) == (found.gpus, ["no disk"])
    assert silent.pop("n3") == ["was there, and did not answer within 1 s: something hangs on it"]
    assert list(silent) == ["n2"]
    assert "did not answer within 120 s: the node hangs, or its network does not reach n0" in silent["n2"][0]


def test_where_nobody_comes_the_first_node_is_at_fault(first):
    await_nodes(first, NAMES, 0.2)
    nodes, silent = collect(first, NAMES, Node("n0"), 0.2)
    assert len(nodes) == 1 and set(silent) == {"n0"} and "no other node reaches it" in silent["n0"][0]
    assert set(collect(first, NAMES[:2], Node("n0"), 0.2)[1]) == {"n1"}  # of two, either may be


def test_it_waits_no_longer_than_needed(first):
    first.set("here1", "")
    began = time.monotonic()
    await_nodes(first, NAMES[:2], 600)
    assert time.monotonic() - began < 300


def test_the_verdict_is_the_first_node_s(first):
    assert decide(first, 0, "fit", 1, 5) == 1
    assert decide(other(first), 1, "fit", None, 5) == 1


@pytest.mark.parametrize(("answered", "apart"), [(10.5, 0), (8, -2), (15, 4), (10, 0), (11, 0)])
def test_a_clock_is_only_as_wrong_as_the_answer_proves(answered, apart):
    assert meeting.apart(answered, asked=10, heard=11) == apart
