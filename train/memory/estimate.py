"""The most memory that a training step takes on one rank, by part.

Four moments compete: the end of the forward pass, with the loss and its gradient; the backward pass of the last layers,
where nearly all activations are there; the end of the backward pass, with all gradients; and the optimizer's step. What
they hold is counted by `train.memory.tracing` and `train.memory.states`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from train.memory import tracing
from train.memory.setting import Setting
from train.memory.skeleton import Skeleton
from train.memory.states import Held, held
from train.memory.tracing import Traced

GIB = 2**30
# Outside of torch's allocator, and assumed: a CUDA context with its kernels, and NCCL's buffers between processes.
CONTEXT_GIB, NCCL_GIB = 0.7, 0.5
# What the allocator reserves beyond tensors: 1 to 3 % in the runs of tests/benchmarks/results/gpu_nvidia_h200.json.
MARGIN = 0.03


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on one rank at its fullest moment."""

    parts: Mapping[str, int]  # what they are for -> bytes, of the allocator
    moment: str
    outside: int  # of the allocator: the context
    margin: int
    host: int  # in the host's memory, for this rank
    paged: int  # optimizer states that move to the host when the GPU is full
    traced: Traced
    held: Held

    @property
    def peak(self) -> int:
        """Of the allocator: what `memory_peak_gib` is."""
        return sum(self.parts.values())

    @property
    def needed(self) -> int:
        """Of the GPU's memory."""
        return self.peak + self.margin + self.outside


def estimate(skeleton: Skeleton, setting: Setting, traced: Traced | None = None) -> Estimate:
    """Count what this setting takes.

    Args:
        traced: its passes, where they are known already.

    Raises:
        NotTraced, ValueError: something cannot be counted; says what.
    """
    traced = traced or tracing.trace(skeleton, setting)
    found = held(traced.weights, setting, hidden_size(skeleton))
    moments = {
        "the end of the forward pass": _passes(traced, found, traced.early),
        "the backward pass": _passes(traced, found, traced.upper, further=found.in_backward),
        "the end of the backward pass": _passes(traced, found, traced.bottom, further=found.in_backward, late=True),
        "the optimizer's step": _step(found, setting),
    }
    moment, parts = max(moments.items(), key=lambda item: sum(item[1].values()))
    peak = sum(parts.values())
    several = setting.sharding.processes > 1
    return Estimate(
        parts=parts,
        moment=moment,
        outside=round((CONTEXT_GIB + NCCL_GIB * several) * GIB) if setting.on_gpu else 0,
        margin=round(MARGIN * peak) if setting.on_gpu else 0,
        host=found.host,
        paged=found.paged,
        traced=traced,
        held=found,
    )


def _passes(traced: Traced, found: Held, most: int, *, further: int = 0, late: bool = False) -> dict[str, int]:
    kept = 0 if late else min(traced.kept, most)
    parts = {
        "weights": found.weights,
        "files of packed weights": found.files,
        "gradients": found.gradients + (found.late if late else 0),
        "optimizer states": found.optimizer,
        "activations": kept,
        "loss head and layer at work": most - kept,
        "buffers": found.buffers + further,
    }
    return {name: size for name, size in parts.items() if size}


def _step(found: Held, setting: Setting) -> dict[str, int]:
    stays = found.buffers if setting.sharding.kind == "ddp" else 0
    parts = {"weights": found.weights, "files of packed weights": found.files, "gradients": found.step}
    parts |= {"optimizer states": found.optimizer, "buffers": stays}
    return {name: size for name, size in parts.items() if size}


def hidden_size(skeleton: Skeleton) -> int:
    """Of the language model."""
    config: Any = skeleton.model.config.get_text_config()
    return int(config.hidden_size)
