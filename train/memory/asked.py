"""Preflight's flags about the machine that a run is for; imports no torch."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.flag_types import positive, whole_number
from train.memory.measured_speed import run_folder


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was given. Where nothing was, no page is printed."""

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_memory_gib: float | None = None
    gpu_name: str | None = None
    tokens_per_second: float | None = None
    from_run: Path | None = None
    mfu: float | None = None
    save_gib_per_second: float | None = None
    suggest: bool = False
    model: str | None = None
    seq_len: int | None = None

    @property
    def processes(self) -> int | None:
        """One for each GPU; None where neither number is given."""
        if self.nodes is None and self.gpus_per_node is None:
            return None
        return (self.nodes or 1) * (self.gpus_per_node or 1)

    def __bool__(self) -> bool:
        return self != Asked()


def asked_of(namespace: argparse.Namespace) -> Asked:
    """The flags that were read.

    Raises:
        ValueError: two of them contradict each other.
    """
    asked = Asked(**{field.name: getattr(namespace, field.name) for field in dataclasses.fields(Asked)})
    given = [f"--{name}" for name in ("tokens_per_second", "from_run", "mfu") if getattr(asked, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: each gives the hours: keep one")
    return asked


def add_flags(parser: argparse.ArgumentParser, once: type[argparse.Action]) -> None:
    """Add them to preflight's parser.

    Args:
        once: the action of a flag that may be given once.
    """
    title = "Flags of the preflight check for a page about memory, disk and hours (takes seconds more, and torch)"
    group = parser.add_argument_group(title)

    def add(name: str, kind: Callable[[str], Any], letter: str, text: str) -> None:
        group.add_argument(name, action=once, type=kind, metavar=letter, help=text)

    add("--nodes", whole_number, "N", "machines that the run is for (default 1)")
    add("--gpus_per_node", whole_number, "N", "GPUs of each, one process each (default 1)")
    add("--gpu_memory_gib", positive, "GIB", "memory of one GPU, such as 79 of an H100; found where there is a GPU")
    add("--gpu_name", str, "NAME", "such as H100, for the hours that an MFU gives")
    add("--mfu", positive, "SHARE", "share of the GPU's peak that is used (default: measured on one H200)")
    add("--tokens_per_second", positive, "N", "of one GPU, as an earlier run logged it: gives the hours")
    add("--from_run", run_folder, "RUN_DIR", "an earlier run of this model on this GPU: its throughput gives the hours")
    add("--save_gib_per_second", positive, "N", "bandwidth of the disk: gives the time that a checkpoint takes")
    add("--model", str, "ID", "instead of a run: what a model needs, for each way to train it; a hub id or a folder")
    add("--seq_len", whole_number, "N", "tokens of a row, with --model (default 4096); a run has those of its shards")
    text = "propose ZeRO stage or offload, micro-batch, accumulation and checkpointing for these GPUs"
    group.add_argument("--suggest", action="store_true", help=text)
