"""What one node has, as it is sent to the first node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Gpu:
    """A GPU that the job sees, or a MIG instance."""

    index: int  # as torch counts
    name: str = ""
    uuid: str = ""
    bus: str = ""  # PCI address as the kernel writes it, such as 0000:3b:00.0
    memory_mib: int = 0
    held_mib: int | None = None  # by others, before the check used it
    ecc_uncorrected: int | None = None  # since the driver was loaded
    remaps: str = ""  # "pending", "failed"
    throttled: list[str] = field(default_factory=list)
    xids: list[int] = field(default_factory=list)
    tflops: float | None = None  # of a matrix product in half precision
    copy_gbs: float | None = None  # GB/s read and written by a copy within its memory

    @property
    def label(self) -> str:
        """How problems call it."""
        return f"GPU {self.index} ({self.bus})" if self.bus else f"GPU {self.index}"


@dataclass
class Node:
    """One node."""

    name: str  # as in PACKHAUL_NODE_NAMES
    gpus: list[Gpu] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # what is known of: python, torch, CUDA, driver, commit
    contents: dict[str, dict[str, str]] = field(default_factory=dict)  # folder -> what of it -> digest
    clock: float = 0.0  # seconds apart from the first node's
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth a line, and no reason to leave the node out


def node_from(found: dict[str, Any]) -> Node:
    """From `dataclasses.asdict`."""
    return Node(**{**found, "gpus": [Gpu(**gpu) for gpu in found["gpus"]]})
