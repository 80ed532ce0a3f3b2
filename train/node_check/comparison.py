"""What is wrong with each node: its own problems, and what it has that the others have not."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from train.node_check.findings import Gpu, Node

MAX_CLOCK_SECONDS = 5.0  # from the first node's clock: with more, log lines, caches and certificates mislead
VERSIONS = ("driver", "CUDA", "torch", "python", "commit")


def problems_of(nodes: list[Node], min_speed: float) -> dict[str, list[str]]:
    """Of each unfit node its problems, by name.

    Args:
        nodes: the first one first; what it holds is what the others should hold.
        min_speed: of a GPU, as a part of the median of its kind; 0: none.
    """
    found: dict[str, list[str]] = {node.name: list(node.problems) for node in nodes}
    comparisons = (other_gpus, other_versions, other_contents, other_clocks, lambda nodes: slow_gpus(nodes, min_speed))
    for comparison in comparisons:
        for node, problem in comparison(nodes):
            found[node.name].append(problem)
    return {name: problems for name, problems in found.items() if problems}


def other_gpus(nodes: list[Node]) -> Iterator[tuple[Node, str]]:
    """Nodes with other GPUs than most."""
    kinds = [", ".join(sorted({gpu.name for gpu in node.gpus})) for node in nodes]
    usual = _usual(kinds)
    for node, kind in zip(nodes, kinds, strict=True):
        if kind != usual and not node.problems:
            yield node, f"GPUs {kind or 'none'}, most nodes have {usual or 'none'}"


def other_versions(nodes: list[Node]) -> Iterator[tuple[Node, str]]:
    """Nodes with another driver, torch and so on than most; one that is not known is not compared."""
    for name in VERSIONS:
        known = [node for node in nodes if node.versions.get(name)]
        usual = _usual([node.versions[name] for node in known])
        for node in known:
            if (found := node.versions[name]) != usual:
                yield node, f"{name} {found}, most nodes have {usual}"


def _usual(found: Sequence[str]) -> str:
    return Counter(found).most_common(1)[0][0] if found else ""


def other_contents(nodes: list[Node]) -> Iterator[tuple[Node, str]]:
    """Nodes whose copy of a folder differs from that of the first node which has one. Who lacks it has said so."""
    for folder in dict.fromkeys(folder for node in nodes for folder in node.contents):
        asked = [node for node in nodes if folder in node.contents]
        first = next((node for node in asked if node.contents[folder]), asked[0])
        for node in asked:
            if (found := node.contents[folder]) != (expected := first.contents[folder]):
                yield node, f"{folder} {_content_difference(expected, found)} (compared with {first.name})"


def _content_difference(expected: dict[str, str], found: dict[str, str]) -> str:
    if not found:
        return "is not on this node"
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    kinds = {"manifest.json": "shards", "config.json": "configuration"}
    what = " and ".join(sorted({kinds.get(name, "weights") for name in names}))
    shown = [name if name in found else f"{name} (missing)" for name in names[:3]]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"holds other {what}: {', '.join(shown)}{more}"


def other_clocks(nodes: list[Node]) -> Iterator[tuple[Node, str]]:
    """Nodes whose clock is not the first node's."""
    for node in nodes:
        if abs(node.clock) > MAX_CLOCK_SECONDS:
            way = "ahead of" if node.clock > 0 else "behind"
            apart = f"{abs(node.clock):.0f} s {way} that of {nodes[0].name}"
            yield node, f"its clock is {apart}, {MAX_CLOCK_SECONDS:.0f} s at most expected"


def slow_gpus(nodes: list[Node], min_speed: float) -> Iterator[tuple[Node, str]]:
    """GPUs that are slower than the others of their kind in the job, of which there must be two."""
    measures: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
        ("TFLOP/s in a matrix product", "TFLOP/s", lambda gpu: gpu.tflops),
        ("GB/s in a copy within its memory", "GB/s", lambda gpu: gpu.copy_gbs),
    )
    all_gpus = [(node, gpu) for node in nodes for gpu in node.gpus]
    for what, unit, value in measures:
        for kind in sorted({gpu.name for _, gpu in all_gpus}):
            timed = [(node, gpu, speed) for node, gpu in all_gpus if gpu.name == kind and (speed := value(gpu))]
            # Of two the faster one: half-way between them, neither would be slow.
            median = statistics.median_high(speed for _, _, speed in timed) if timed else 0.0
            for node, gpu, speed in timed:
                if speed < min_speed * median:
                    share = f"{speed / median:.0%} of the median of {len(timed)} GPUs, {median:.4g} {unit}"
                    yield node, f"{gpu.label} is slow: {speed:.4g} {what}, {share} (PACKHAUL_MIN_GPU_SPEED)"
