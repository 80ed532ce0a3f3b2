"""Whole runs of train.sft inside the test's own process: one process, no DeepSpeed, seconds instead of a launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.in_process import as_a_fresh_process
from tests.training import run_config
from train import preemption, sft


def run_here(config: Path, *flags: str) -> int:
    """`train.sft` with this run config; its exit code. What it leaves in this process, and the lock, are given back."""
    with as_a_fresh_process():
        try:
            return sft.main(["--config", str(config), *flags])
        finally:
            while sft._LOCK:
                sft._LOCK.pop().close()
            preemption._received.clear()


def single_config(path: Path, **options: Any) -> Path:
    """A run config for one process without DeepSpeed."""
    alone = {"expected_world_size": 1, "expected_distributed_type": "NO", "disable_tqdm": True}
    return run_config(path, **{**alone, **options})
