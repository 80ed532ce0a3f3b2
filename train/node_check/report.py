"""What the check prints and writes: lines, a table of GPUs, unfit.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train.node_check.findings import Gpu, Node
from train.run.atomic_files import warning, write_json_atomically

UNFIT = "unfit.json"
_HEAD = ("GPU", "name", "PCI address", "TFLOP/s", "copy GB/s", "held MiB", "ECC", "remaps", "throttled", "XID")


def say(line: str) -> None:
    """A line of the job's log."""
    print(f"packhaul: {line}", flush=True)


def say_of(name: str, problems: list[str]) -> None:
    """A line for each problem of a node."""
    for problem in problems:
        say(f"node {name}: {problem}")


def summary(node: Node) -> str:
    """One line of a node about itself."""
    kinds = sorted({gpu.name for gpu in node.gpus})
    gpus = f"{len(node.gpus)} x {', '.join(kinds)}" if kinds else "no GPUs"
    versions = ", ".join(f"{name} {version[:12]}" for name, version in node.versions.items())
    timed = [gpu for gpu in node.gpus if gpu.tflops]
    speeds = f", {min(gpu.tflops or 0 for gpu in timed):.4g} TFLOP/s at least" if timed else ""
    state = f"{len(node.problems)} problem(s)" if node.problems else "no problem of its own"
    return f"node {node.name}: {gpus}{speeds}, {versions}: {state}"


def write_unfit(folder: str | None, unfit: dict[str, list[str]]) -> None:
    """unfit.json in the attempt's log folder, for the job that decides what comes next."""
    if folder and unfit:
        with warning(f"{UNFIT} is not written: the job cannot leave these nodes out by itself"):
            write_json_atomically(Path(folder) / UNFIT, dict(unfit))


def table(gpus: list[Gpu]) -> list[str]:
    """A line for each GPU, below a head."""
    rows = [_HEAD, *(_cells(gpu) for gpu in gpus)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(gpu: Gpu) -> tuple[str, ...]:
    numbers = (gpu.tflops, gpu.copy_gbs, gpu.held_mib, gpu.ecc_uncorrected)
    shown = ["?" if number is None else f"{number:g}" for number in numbers]
    words = (gpu.remaps, ",".join(gpu.throttled), ",".join(map(str, gpu.xids)))
    return (str(gpu.index), gpu.name, gpu.bus, *shown, *(word or "-" for word in words))


def as_json(node: Node, problems: list[str], result: dict[str, Any]) -> str:
    """Everything in one line."""
    return json.dumps({**asdict(node), "problems": problems, "sum": result})
