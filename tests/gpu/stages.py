"""The stages of a call to a GPU machine, most valuable first, with their commands.

`estimate` is seconds on an H100, process start and imports among them: worked out, not measured (docs/gpu.md). A stage
begins only if its estimate is left of the total, and ends at `limit` at the latest.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

BENCH = ("tests.benchmarks.bench_gpu",)
BY_LAYER = {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}
WHOLE_MODEL = {"ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "false"}


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
        file = f"configs/accelerate/{'cpu_' * rehearsed}{self.launcher}.yaml"
        launch = ["-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "1"]
        return [*launch, "--main_process_port", "0", "-m", *module]


def parallel(rehearsed: bool) -> list[str]:
    """pytest's options for several processes and a limit for each test, where these plugins are installed."""
    has = {name: importlib.util.find_spec(name) is not None for name in ("xdist", "pytest_timeout")}
    spread = ["-n", "8"] if has["xdist"] and not rehearsed else []
    return [*spread, *(["--timeout", "150"] if has["pytest_timeout"] else [])]


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
SAVES = ("--options", json.dumps({"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}))
# fmt: off
STAGES = (
    Stage(name="smoke", what="machine, ceilings, kernel, loss head, optimizer, copies into pinned memory, generation",
          estimate=45, limit=150, module=("tests.gpu.smoke",)),
    Stage(name="node_check", what="speed, memory errors, throttling and who holds memory, of each GPU",
          estimate=30, limit=120, module=("tests.gpu.node_check",)),
    checks("kernels", "varlen forward and backward against fp32, filler rows, the choice of `auto`", 25, 90,
           "tests/gpu/test_kernels.py", "-k", "varlen_kernel or auto"),
    checks("training", "fused, 8-bit and paged optimizers, QLoRA, compiled, exact resume, ZeRO-3, FSDP2, all back ends",
           140, 240, "tests/gpu", "-k", "not varlen_kernel and not auto_takes"),
    measured("save", "0.6B, saves in the background: longest step against the others", 45, 120,
             "0.6B", "packhaul", 8, *SAVES),
    measured("full", "1.7B, all weights, 4 packed rows a step", 40, 150, "1.7B", "packhaul", 10),
    measured("lora", "8B, LoRA, 2 packed rows a step", 45, 150, "8B_lora", "packhaul", 10),
    measured("full_trl_varlen", "1.7B, TRL packed, with the same attention", 40, 120,
             "1.7B", "trl_packed_varlen", 10),
    measured("full_trl_padded", "1.7B, TRL padded, as many documents a step", 50, 120,
             "1.7B", "trl_padded", 5, "--warm-up", "1"),
    measured("lora_trl_varlen", "8B, LoRA, TRL packed, with the same attention", 45, 120,
             "8B_lora", "trl_packed_varlen", 8),
    measured("lora_trl_padded", "8B, LoRA, TRL padded, as many documents a step", 60, 150,
             "8B_lora", "trl_padded", 4, "--warm-up", "1"),
    measured("full_trl_packed", "1.7B, TRL packed, its own attention", 45, 120,
             "1.7B", "trl_packed", 7, "--warm-up", "2"),
    measured("full_compiled", "1.7B, compiled by layer", 55, 150, "1.7B", "packhaul_compiled", 10,
             "--warm-up", "4", environment=BY_LAYER),
    measured("full_one_row", "1.7B, 1 packed row a step", 30, 100, "1.7B", "packhaul", 14, "--rows", "1"),
    measured("full_zero1", "1.7B, ZeRO-1 with one process (bf16 weights, fp32 masters), compiled by layer", 60, 150,
             "1.7B", "packhaul_compiled", 10, "--warm-up", "4", environment=BY_LAYER, launcher="zero1"),
    measured("full_liger", "1.7B, Liger's kernels", 35, 100, "1.7B", "packhaul", 10, *LIGER),
    measured("full_profile", "1.7B, time by kind of kernel", 45, 120, "1.7B", "packhaul", 8,
             "--profile", "PROFILE"),
    measured("lora_trl_packed", "8B, LoRA, TRL packed, its own attention", 75, 150,
             "8B_lora", "trl_packed", 6, "--warm-up", "2"),
    measured("full_compiled_whole", "1.7B, compiled as a whole", 120, 240, "1.7B", "packhaul_compiled", 10,
             "--warm-up", "6", environment=WHOLE_MODEL),
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
