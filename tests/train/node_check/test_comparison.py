"""The node that differs from the others is named."""

from __future__ import annotations

import pytest

from train.node_check.comparison import problems_of
from train.node_check.findings import Gpu, Node

VERSIONS = {"driver": "580.1", "torch": "2.13.0", "commit": "abc"}


def node(name: str, *tflops: float, kind: str = "H100", **changes) -> Node:
    gpus = [Gpu(index, kind, tflops=speed, copy_gbs=2900.0) for index, speed in enumerate(tflops or (700.0,))]
    return Node(name, gpus, **{"versions": VERSIONS, **changes})


def test_alike():
    assert problems_of([node("a"), node("b"), node("c", problems=[])], 0.85) == {}


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (node("x", kind="A100"), "GPUs A100, most nodes have H100"),
        (node("x", versions={**VERSIONS, "driver": "550.9"}), "driver 550.9, most nodes have 580.1"),
        (node("x", versions={**VERSIONS, "torch": "2.12.0"}), "torch 2.12.0, most nodes have 2.13.0"),
        (node("x", versions={**VERSIONS, "commit": "abc-dirty"}), "commit abc-dirty, most nodes have abc"),
        (node("x", clock=-90), "its clock is 90 s behind that of a, 5 s at most expected"),
        (node("x", clock=7), "its clock is 7 s ahead of that of a, 5 s at most expected"),
        (node("x", problems=["no disk"]), "no disk"),
    ],
)
def test_the_one_that_differs(other, problem):
    assert problems_of([node("a"), node("b"), other], 0.85) == {"x": [problem]}


def test_what_is_not_known_is_not_compared():
    assert problems_of([node("a"), node("b", versions={})], 0.85) == {}


class TestSpeed:
    def test_a_slow_gpu_is_named_with_the_median(self):
        (problem,) = problems_of([node("a", 700, 710), node("b", 705, 400)], 0.85)["b"]
        assert problem == (
            "GPU 1 is slow: 400 TFLOP/s in a matrix product, 57% of the median of 4 GPUs, 705 TFLOP/s "
            "(PACKHAUL_MIN_GPU_SPEED)"
        )

    def test_of_two_the_slower_one(self):
        assert list(problems_of([node("a", 700), node("b", 560)], 0.85)) == ["b"]

    def test_slow_memory(self):
        slow = node("b", 700)
        slow.gpus[0].copy_gbs = 1500.0
        (problem,) = problems_of([node("a", 700), slow], 0.85)["b"]
        assert "1500 GB/s in a copy within its memory, 52% of the median of 2 GPUs, 2900 GB/s" in problem

    @pytest.mark.parametrize("least", [0.85, 0.0])
    def test_within_bounds_or_without_any(self, least):
        assert problems_of([node("a", 700), node("b", 600 if least else 1)], least) == {}

    def test_only_gpus_of_a_kind_are_compared(self):
        unfit = problems_of([node("a", 700), node("b", 700), node("c", 100, kind="MIG 1g")], 0.85)
        assert unfit == {"c": ["GPUs MIG 1g, most nodes have H100"]}

    def test_one_that_was_not_timed(self):
        assert problems_of([Node("a", [Gpu(0, "H100")], VERSIONS), node("b"), node("c")], 0.85) == {}


def test_contents_are_those_of_the_first_node():
    first = node("a", contents={"the model folder m": {"w1": "1", "w2": "2", "config.json": "3"}})
    same = node("b", contents=first.contents)
    other = node("c", contents={"the model folder m": {"w1": "1", "config.json": "4"}})
    assert problems_of([first, same, node("d"), other], 0.85) == {
        "c": [
            "the model folder m holds other configuration and weights: config.json, w2 (missing) (compared with a)"
        ]
    }  # fmt: skip


def test_a_model_that_the_first_node_lacks():
    nodes = [node(name, contents={"the model folder m": held}) for name, held in (("a", {}), ("b", {"w": "1"}))]
    assert problems_of(nodes, 0.85) == {"a": ["the model folder m is not on this node (compared with b)"]}
    assert problems_of([nodes[0], node("c", contents=nodes[0].contents)], 0.85) == {}
