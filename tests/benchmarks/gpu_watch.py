"""Steps of a trainer, watched from outside: when each ended on the device, and what it did meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.shards import IGNORE_INDEX


@dataclass
class Watched:
    """What was seen of a training."""

    ends: list[tuple[Any, list[Any]]] = field(default_factory=list)  # of each step: moment, and sums on the device
    attention: str = ""
    graphs: list[int] = field(default_factory=list)  # compiled so far, at the end of each step
    profile: dict[str, Any] = field(default_factory=dict)

    def steps(self) -> list[tuple[float, int, int, float]]:
        """(end in seconds, real tokens, trained tokens, attended pairs) of each optimizer step."""
        first = self.ends[0][0]
        return [
            (seconds_between(first, end), int(tokens), int(trained), float(pairs))
            for end, (tokens, trained, pairs) in self.ends
        ]


def moment() -> Any:
    """Now. On a GPU an event, reached when all is done that it was given before: nothing waits for it."""
    import torch

    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: Any, later: Any) -> float:
    """Of two moments."""
    if isinstance(first, float):
        return later - first
    later.synchronize()
    return first.elapsed_time(later) / 1000


@contextlib.contextmanager
def watched_steps(profiled: tuple[int, Path] | None = None) -> Iterator[Watched]:
    """Watch every trainer that trains meanwhile.

    Args:
        profiled: the step after which torch's profiler begins, for two steps, and the file for its table.
    """
    from torch._dynamo.utils import counters
    from transformers import DefaultFlowCallback, Trainer

    seen, sums = Watched(), [0, 0, 0]
    training_step, step_end = Trainer.training_step, DefaultFlowCallback.on_step_end

    def counted(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.attention = self.model.config._attn_implementation
        for i, value in enumerate(_sums(inputs)):
            sums[i] = sums[i] + value  # stays on the device
        return training_step(self, model, inputs, *args, **kwargs)

    def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.ends.append((moment(), list(sums)))
        seen.graphs.append(counters["stats"]["unique_graphs"])
        sums[:] = [0, 0, 0]
        if profiled:
            profile_steps(seen, *profiled)
        return step_end(self, *args, **kwargs)

    Trainer.training_step, DefaultFlowCallback.on_step_end = counted, ended
    try:
        yield seen
    finally:
        Trainer.training_step, DefaultFlowCallback.on_step_end = training_step, step_end


def _sums(inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Real tokens, trained tokens, attended pairs of a forward pass."""
    mask = inputs.get("attention_mask")
    lengths = (mask.sum(-1) if mask is not None else inputs["cu_seq_lens_q"].diff()).double()
    return lengths.sum(), (inputs["labels"] != IGNORE_INDEX).sum(), (lengths * (lengths + 1) / 2).sum()


STEPS = 2  # that are profiled


def profile_steps(seen: Watched, after: int, file: Path) -> None:
    """At the end of each step: begin after that one, stop two later and sum up."""
    from torch.profiler import ProfilerActivity, profile

    if len(seen.ends) == after:
        seen.profile["running"] = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        seen.profile["running"].__enter__()
        seen.profile["begun"] = moment()
    elif len(seen.ends) == after + STEPS:
        milliseconds = seconds_between(seen.profile.pop("begun"), moment()) * 1000 / STEPS
        running = seen.profile.pop("running")
        running.__exit__(None, None, None)
        seen.profile = {"ms_per_step": round(milliseconds, 2), **summary(running.key_averages(), file)}


def summary(averages: Any, file: Path) -> dict[str, Any]:
    """Milliseconds a step by kind of kernel, and the longest kernels; the whole table to the file."""
    import torch

    on_gpu = torch.cuda.is_available()
    file.write_text(averages.table(sort_by=f"self_{'device' if on_gpu else 'cpu'}_time_total", row_limit=60))
    kinds: Counter[str] = Counter()
    longest = []
    for entry in averages:
        if on_gpu != str(entry.device_type).endswith("CUDA"):
            continue
        milliseconds = (entry.self_device_time_total if on_gpu else entry.self_cpu_time_total) / 1000 / STEPS
        kinds[kind_of(entry.key)] += milliseconds
        longest.append((round(milliseconds, 3), entry.count // STEPS, entry.key[:90]))
    by_kind = {kind: round(milliseconds, 2) for kind, milliseconds in kinds.most_common()}
    total = round(sum(kinds.values()), 2)
    return {"kernel_ms_per_step": total, "ms_by_kind": by_kind, "longest": sorted(longest, reverse=True)[:25]}


KINDS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "varlen", "cudnn_generated")),
    ("matrix products", ("gemm", "cutlass", "xmma", "wgmma", "nvjet", "cublas", "splitk", "aten::mm", "aten::addmm")),
    ("loss kernels of TRL", ("_forward_kernel", "_backward_kernel")),
    ("optimizer and norms of gradients", ("multi_tensor", "adam", "lpnorm", "foreach")),
    ("compiled", ("triton",)),
    ("copies and casts", ("memcpy", "memset", "copy", "cat")),
    ("reductions", ("reduce",)),
    ("elementwise", ("elementwise", "vectorized", "unrolled")),
)


def kind_of(name: str) -> str:
    """What a kernel of this name does."""
    low = name.lower()
    return next((kind for kind, signs in KINDS if any(sign in low for sign in signs)), "other")
