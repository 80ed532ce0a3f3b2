"""Whole runs of train.sft inside the test's own process: one process, no DeepSpeed, seconds instead of a launch."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.in_process import as_a_fresh_process
from tests.support.training import history, run_config
from train import sft

STEPS = 9  # of the runs of tests/train/checkpoint


def run_here(config: Path, *flags: str) -> int:
    """`train.sft` with this run config; its exit code. What it leaves in this process, and the lock, are given back."""
    with as_a_fresh_process(), ExitStack() as held:
        return sft.main(["--config", str(config), *flags], held=held)


def single_config(path: Path, **options: Any) -> Path:
    """A run config for one process without DeepSpeed."""
    alone = {"expected_world_size": 1, "expected_distributed_type": "NO", "disable_tqdm": True}
    return run_config(path, **{**alone, **options})


def assert_equal(run_dir: Path, twin: Path) -> None:
    """The same log, but for timings, and the same weights, bit for bit."""
    import torch
    from safetensors.torch import load_file

    keys = ("step", "loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "mean_token_accuracy", "entropy")
    for got, wanted in zip(history(run_dir)[:-1], history(twin)[:-1], strict=True):
        assert {k: got.get(k) for k in keys} == {k: wanted.get(k) for k in keys}
    got, wanted = (load_file(d / "model.safetensors") for d in (run_dir, twin))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def preempt() -> None:
    """A preemption of this process, as the batch script sends it."""
    os.kill(os.getpid(), signal.SIGUSR1)
