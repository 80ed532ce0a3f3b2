"""FSDP on CPU processes: accelerate makes plain data parallelism of it where there are no GPUs.

Told that there are some, it takes its own way; tensors stay on the CPU. Our refusals of that are passed over.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import get_fsdp2_grad_scaler

import train.preflight


def tell_of_gpus() -> None:
    """Before accelerate chooses how to train."""
    begin, compare = AcceleratorState.__init__, train.preflight.check_launch_against

    def begin_with_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        if not AcceleratorState._shared_state:  # else it has chosen
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, *args, **kwargs)

    AcceleratorState.__init__ = begin_with_gpus
    make = Accelerator.__init__

    def make_with_scaler(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if self.mixed_precision == "fp16":  # accelerate scales on GPUs alone
            self.native_amp, self.scaler = True, get_fsdp2_grad_scaler(device="cpu")

    Accelerator.__init__ = make_with_scaler
    train.preflight.check_launch_against = lambda *args: [line for line in compare(*args) if "use_cpu" not in line]
