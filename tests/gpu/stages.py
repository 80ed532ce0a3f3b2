"""The stages of a call to a GPU machine, most valuable first, with their commands.

`estimate` is seconds with process start and imports: measured on an H200 where docs/gpu.md has figures, else worked
out. A stage begins only if its estimate is left of the total, and ends at `limit` at the latest.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

BENCH = ("tests.benchmarks.bench_gpu",)
BY_LAYER = {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process, in the project's root."""

    name: str
    what: str  # for the table in docs/gpu.md
    estimate: int  # seconds
    limit: int  # seconds
    module: tuple[str, ...]  # python -m ...
    environment: dict[str, str] = field(default_factory=dict)
    launcher: str | None = None  # a file of configs/accelerate, launched with one process

    def command(self, rehearsed: bool) -> list[str]:
        """The arguments of Python; in a rehearsal a measurement is a dry run."""
        module = list(self.module)
        if module[0] == "pytest":
            module += parallel(rehearsed)
        elif rehearsed:
            module.append("--dry-run")
        if not self.launcher:
            return ["-m", *module]
        # A CPU has no FSDP: accelerate would train with plain data parallelism, which one process does without.
        name = {"fsdp2": "single"}.get(self.launcher, self.launcher) if rehearsed else self.launcher
        file = f"configs/accelerate/{'cpu_' * rehearsed}{name}.yaml"
        launch = ["-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "1"]
        return [*launch, "--main_process_port", "0", "-m", *module]


def parallel(rehearsed: bool) -> list[str]:
    """pytest's options for several processes and a limit for each test, where these plugins are installed."""
    has = {name: importlib.util.find_spec(name) is not None for name in ("xdist", "pytest_timeout")}
    spread = ["-n", "8"] if has["xdist"] and not rehearsed else []
    limit = "900" if rehearsed else "150"  # a CPU compiles DeepSpeed's operators first, and may have other work
    return [*spread, *(["--timeout", limit] if has["pytest_timeout"] else [])]


def checks(name: str, what: str, estimate: int, limit: int, *selection: str) -> Stage:
    """Tests of this folder."""
    module = ("pytest", "-v", "-p", "no:cacheprovider", *selection)
    # Eight processes that compile at once leave two threads each.
    return Stage(name=name, what=what, estimate=estimate, limit=limit, module=module,
                 environment={"TORCHINDUCTOR_COMPILE_THREADS": "4"})  # fmt: skip


def measured(
    name: str, what: str, estimate: int, limit: int, shape: str, way: str, steps: int, *options: str,
    environment: dict[str, str] | None = None, launcher: str | None = None,
) -> Stage:  # fmt: skip
    """One measurement of bench_gpu."""
    module = (*BENCH, "--measure", shape, way, str(steps), *options)
    return Stage(name=name, what=what, estimate=estimate, limit=limit, module=module,
                 environment=environment or {}, launcher=launcher)  # fmt: skip


LIGER = ("--options", json.dumps({"use_liger_kernel": True}))
SAVES = ("--options", json.dumps({"save_strategy": "steps", "save_steps": 18, "save_total_limit": 1}))
KEPT = ("--options", json.dumps({"gradient_checkpointing": False}), "--at-once", "1")
COMPILED = ("packhaul_compiled", 12, "--warm-up", "4")
COPIES = ("--options", json.dumps({"bf16_copies": True, "keep_logits_gib": 3.0}))
KEPT_LOGITS = ("--options", json.dumps({"gradient_checkpointing": False, "keep_logits_gib": 3.0}), "--at-once", "1")
# fmt: off
STAGES = (
    Stage(name="smoke", what="machine, ceilings, kernel, loss head, optimizer, copies into pinned memory, generation",
          estimate=40, limit=150, module=("tests.gpu.smoke",)),
    checks("kernels", "varlen forward and backward against fp32, filler rows, the choice of `auto`", 55, 120,
           "tests/gpu/test_kernels.py", "-k", "varlen_kernel or auto or document_bounds"),
    checks("training", "fused, 8-bit and paged optimizers, QLoRA, compiled, exact resume, ZeRO-3, FSDP2, all back ends",
           175, 260, "tests/gpu", "-k", "not varlen_kernel and not auto_takes"),
    measured("full_compiled", "1.7B, compiled by layer", 55, 150, "1.7B", *COMPILED, environment=BY_LAYER),
    measured("full_copies", "1.7B, compiled, bf16 copies of the weights, logits kept", 60, 150, "1.7B",
             *COMPILED, *COPIES, environment=BY_LAYER),
    measured("lora_kept_logits", "8B, LoRA, compiled by layer, no checkpointing, logits kept", 65, 180, "8B_lora",
             *COMPILED, *KEPT_LOGITS, environment=BY_LAYER),
    measured("lora_compiled", "8B, LoRA, compiled by layer, no checkpointing, 1 row in a forward pass", 65, 180,
             "8B_lora", *COMPILED, *KEPT, environment=BY_LAYER),
    measured("full_compiled_profile", "1.7B, compiled by layer, time by kind of kernel", 90, 180, "1.7B", *COMPILED,
             "--profile", "PROFILE", environment=BY_LAYER),
    measured("full", "1.7B, all weights, 4 packed rows a step", 40, 150, "1.7B", "packhaul", 10),
    measured("full_trl_varlen", "1.7B, TRL packed, with the same attention", 40, 120,
             "1.7B", "trl_packed_varlen", 10),
    measured("lora", "8B, LoRA, 2 packed rows a step", 50, 150, "8B_lora", "packhaul", 10),
    measured("lora_trl_varlen", "8B, LoRA, TRL packed, with the same attention", 45, 120,
             "8B_lora", "trl_packed_varlen", 8),
    measured("save", "0.6B, saves in the background: longest step against the others", 80, 150,
             "0.6B", "packhaul", 40, *SAVES),
    measured("full_fsdp2", "1.7B, FSDP2 with one process (bf16 copies of fp32 weights), compiled by layer", 60, 150,
             "1.7B", *COMPILED, environment=BY_LAYER, launcher="fsdp2"),
    measured("full_two_rows", "1.7B, compiled by layer, 2 rows in a forward pass", 55, 150, "1.7B", *COMPILED,
             "--at-once", "2", environment=BY_LAYER),
    measured("full_zero1", "1.7B, ZeRO-1 with one process (bf16 weights, fp32 masters), compiled by layer", 60, 150,
             "1.7B", *COMPILED, environment=BY_LAYER, launcher="zero1"),
    measured("full_liger", "1.7B, Liger's kernels", 40, 100, "1.7B", "packhaul", 10, *LIGER),
    measured("full_trl_padded", "1.7B, TRL padded, as many documents a step", 105, 150,
             "1.7B", "trl_padded", 5, "--warm-up", "1"),
    Stage(name="node_check", what="speed, memory errors, throttling and who holds memory, of each GPU",
          estimate=20, limit=120, module=("tests.gpu.node_check",)),
    measured("lora_trl_padded", "8B, LoRA, TRL padded, as many documents a step", 110, 200,
             "8B_lora", "trl_padded", 4, "--warm-up", "1"),
    measured("full_trl_packed", "1.7B, TRL packed, its own attention", 50, 120,
             "1.7B", "trl_packed", 7, "--warm-up", "2"),
    measured("full_one_row", "1.7B, 1 packed row a step", 30, 100, "1.7B", "packhaul", 14, "--rows", "1"),
    measured("full_profile", "1.7B, time by kind of kernel", 75, 120, "1.7B", "packhaul", 8,
             "--profile", "PROFILE"),
)
# fmt: on


def chosen(names: list[str]) -> Iterator[Stage]:
    """The stages of these names, in this order; all, without names.

    Raises:
        ValueError: no stage has that name.
    """
    by_name = {stage.name: stage for stage in STAGES}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"no stage {', '.join(unknown)}: expected some of {', '.join(by_name)}")
    yield from (by_name[name] for name in names or by_name)


if __name__ == "__main__":
    for stage in STAGES:
        print(stage.name, stage.estimate, sys.executable, *stage.command(False))
