"""Hours that a run takes, from a measured throughput, or from its operations and a share of the GPU's peak (MFU)."""

from __future__ import annotations

from typing import Any

from data_prep.shards import SplitCounts
from train.checks.run_schedule import Schedule
from train.loop.throughput import model_flops

# Measured on one H200 with 1.7B weights, without and with torch_compile: tests/benchmarks/results/gpu_nvidia_h200.json.
MFU, MFU_COMPILED = 0.25, 0.40


def hours_at(tokens_per_second: float, schedule: Schedule) -> float:
    """Of training alone, without evaluations and saves.

    Args:
        tokens_per_second: real tokens of one GPU, as `tokens_per_second_per_gpu` in the logs.
    """
    return schedule.total_steps * schedule.tokens_per_step / (tokens_per_second * schedule.processes) / 3600


def tokens_per_second(model: Any, train: SplitCounts, *, mfu: float, peak: float, lora: bool) -> float:
    """Of one GPU: its peak in operations a second, times the share of it that is used, by the operations of a token.

    Counted as `train.loop.throughput` counts them, documents as if all had the mean length.

    Args:
        model: on the meta device, without adapters.
        train: the manifest's entry of the train split.
        lora: the model's own weights are frozen.
    """
    frozen = [weight for weight in model.parameters() if lora and weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(False)
    flops = model_flops(model)
    for weight in frozen:
        weight.requires_grad_(True)
    length = train["tokens"] / max(train["documents"], 1)
    pairs = {window: min(length, window or length) / 2 for window in flops.per_pair}  # of a token, in the mean
    per_token = flops.per_token + flops.per_trained_token * train["trained_tokens"] / max(train["tokens"], 1)
    per_token += sum(flops.per_pair[window] * number for window, number in pairs.items())
    return mfu * peak / per_token
