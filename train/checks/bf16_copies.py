"""Whether a run can compute with bf16 copies of its weights (`bf16_copies`), as far as it is known before the start."""

from __future__ import annotations

from collections.abc import Iterator

from train.checks.launch import Launch
from train.config.run_config import RunConfig


def check_copies(config: RunConfig, launch: Launch | None, processes: int | None) -> Iterator[str]:
    """One process without DeepSpeed or FSDP, all weights trained, in fp32, computing in bf16.

    Args:
        processes: world size, if it is known.
    """
    if not config.own.bf16_copies:
        return
    if config.precision != "bf16":
        yield f"bf16_copies: expected bf16: true, found {config.precision}: write it, or leave bf16_copies out"
    kind = launch.distributed_type if launch else "NO"
    if kind != "NO" or (processes or 1) > 1:
        yield (
            f"bf16_copies: expected one process without DeepSpeed or FSDP, found {processes or 'some'} of {kind}: "
            "leave it out; under DeepSpeed weights are bf16 with fp32 masters by themselves"
        )
    if config.model.get("use_peft"):
        yield "bf16_copies: with use_peft the weights are not trained: leave it out, and write dtype: bfloat16"
    dtype = config.model.get("dtype")
    if dtype not in (None, "auto", "float32"):
        yield f"bf16_copies: expected dtype: float32, found {dtype}: the copies are made of weights in fp32"
