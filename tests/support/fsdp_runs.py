"""In a world of test_fsdp2.py: train.sft under FSDP2 on CPU processes, once for each run config.

CONFIG.yaml[@STEP]: with a step, the run is asked to stop there, and started again. In `overflow.yaml` the gradient of a
weight that rank 0 holds overflows in the second step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from tests.support.sharded_runs import run
from train.loop.trainer import PackedSFTTrainer


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    """The last process gets a signal in a step."""
    original = PackedSFTTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *args, **kwargs)

    PackedSFTTrainer.training_step = training_step
    try:
        yield
    finally:
        PackedSFTTrainer.training_step = original


@contextmanager
def overflowing_in(step: int) -> Iterator[None]:
    """A gradient overflows in a step, where rank 0 alone holds it; each step prints what losses are scaled by."""
    original = PackedSFTTrainer.training_step

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        number, rank = self.state.global_step + 1, os.environ["RANK"]
        print(f"rank {rank} scales step {number} by {self.accelerator.scaler.get_scale():.0f}", flush=True)
        loss = original(self, model, *args, **kwargs)
        if number == step and rank == "0":
            model.lm_head.weight.grad.to_local()[0, 0] = float("inf")
        return loss

    PackedSFTTrainer.training_step = training_step
    try:
        yield
    finally:
        PackedSFTTrainer.training_step = original


def look_at_gradients() -> None:
    """Print how many gradients a process holds whole, unsharded, after each micro-batch."""
    from torch.distributed.fsdp import FSDPModule

    original = PackedSFTTrainer.training_step

    def held(model: Any) -> int:
        groups = [m._get_fsdp_state()._fsdp_param_group for m in model.modules() if isinstance(m, FSDPModule)]
        parameters = [p for group in groups if group for p in group.fsdp_params]
        whole = [p.unsharded_accumulated_grad for p in parameters]
        whole += [p._unsharded_param.grad for p in parameters if hasattr(p, "_unsharded_param")]
        return sum(gradient is not None for gradient in whole)

    def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, model, *args, **kwargs)
        print(f"rank {os.environ['RANK']} holds {held(model)} whole gradients", flush=True)
        return loss

    PackedSFTTrainer.training_step = training_step


def main(arguments: list[str]) -> int:
    """Each of the runs."""
    look_at_gradients()
    for argument in arguments:
        name, _, step = argument.partition("@")
        with overflowing_in(2) if name.endswith("overflow.yaml") else nullcontext():
            if step:
                with stopping_at(int(step)):
                    run(name)
            run(name)
    return 0
