"""`train.node_check.gpu_process` where there is no GPU: two that are this CPU, with small sizes.

python -m tests.gpu.stand_in_gpu count|speed|add_up ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from train.node_check import gpu_process

CHILD = [sys.executable, "-m", "tests.gpu.stand_in_gpu"]
GPUS = 2


class CpuDevice:
    """As gpu_process.Device, timed by the computer's clock."""

    def __init__(self, index: int = 0) -> None:
        self.torch, self.name, self.dtype = torch, torch.device("cpu"), torch.float32
        self.edge, self.free, self.held_mib, self.repeatable = 64, 2**20, 0, True

    def seconds(self, work: Callable[[], Any], times: int) -> float:
        """Of `times` calls in a row."""
        began = time.perf_counter()
        for _ in range(times):
            work()
        return time.perf_counter() - began


def count() -> dict[str, Any]:
    """As gpu_process.count."""
    devices = [{"name": "CPU", "uuid": "", "bus": "", "memory_mib": 1024} for _ in range(GPUS)]
    return {"devices": devices, "hip": False, "cuda": "13.0"}


def main(argv: list[str]) -> int:
    """As gpu_process.main, on the CPU."""
    gpu_process.Device = CpuDevice  # type: ignore[misc, assignment]
    gpu_process.count = count
    gpu_process.device_of = lambda index: torch.device("cpu")
    gpu_process.MATMUL_SECONDS = 0.05
    return gpu_process.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
