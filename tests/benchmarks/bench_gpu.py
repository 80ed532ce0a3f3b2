"""One measurement of training on one GPU: speed, MFU and memory, of this project or of TRL's own ways.

    python -m tests.benchmarks.bench_gpu --measure 1.7B packhaul 10 [--rows 4] [--options '{"use_liger_kernel": true}']
    python -m tests.benchmarks.bench_gpu --dry-run     # every way on a CPU, with tiny models and the kernel's stand-in

`python -m tests.gpu.run SECONDS` makes all measurements, each in a process of its own, after the checks of tests/gpu.

Models of random weights, with the shapes of Qwen3-1.7B (all weights trained, in fp32 with bf16 autocast) and Qwen3-8B
(LoRA on a base in bf16, gradient checkpointing). Documents of random ids with the lengths of Alpaca in Qwen3's tokens.
Ways: `packhaul` (train.sft on rows of 8,192 tokens), `packhaul_compiled` (torch_compile, rows padded to one length),
`trl_packed_varlen` (SFTTrainer, packing, with the same attention), `trl_packed` (with the attention that TRL takes by
itself), `trl_padded` (SFTTrainer's defaults). All ways of a shape take the same number of packed rows a step, or as
many documents as lie in them. Steps of the warm-up are not counted. Times are the device's own (events), so that no
step waits for the one before. Nothing is saved at the end.

The last line is JSON: see `measure`. Target on an H100 with the 1.7B shape: MFU of 0.50.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.benchmarks import gpu_arithmetic as arithmetic
from tests.benchmarks.gpu_inputs import SHAPES, make_documents, random_weights, write_model
from tests.benchmarks.gpu_watch import Watched, watched_steps
from tests.benchmarks.gpu_ways import WAYS, Task, train
from tests.gpu import figures, stand_in

WARM_UP = 3  # steps that are not counted: compiling kernels, growing the allocator's pool
DRY_SHAPES = {"0.6B": "tiny", "1.7B": "tiny", "8B_lora": "tiny_lora"}
DRY_STEPS = 2


def main(argv: list[str] | None = None) -> int:
    """One measurement, or all ways as a dry run; prints the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=3, metavar=("SHAPE", "WAY", "STEPS"), help="one measurement")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with a tiny model of the same kind")
    parser.add_argument("--rows", type=int, help="packed rows of an optimizer step")
    parser.add_argument("--at-once", type=int, help="packed rows of a forward pass")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON: options of SFTConfig")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="steps that are not counted")
    parser.add_argument("--profile", type=Path, help="trace the last two steps; the file for the table of kernels")
    parser.add_argument("--output", type=Path, help="file for the JSON, written after each measurement")
    asked = parser.parse_args(argv)
    if not (asked.measure or asked.dry_run):
        parser.error("expected --measure SHAPE WAY STEPS or --dry-run; all of it: python -m tests.gpu.run SECONDS")
    found = measure_one(asked) if asked.measure else dry_run(asked)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))
    return 0


def measure_one(asked: argparse.Namespace) -> dict[str, Any]:
    """The measurement asked for; as a dry run with a tiny model and two steps."""
    shape, way, steps = asked.measure
    warm_up, rows, at_once, options = asked.warm_up, asked.rows, asked.at_once, asked.options
    if asked.dry_run:
        shape, steps, warm_up, rows = DRY_SHAPES.get(shape, shape), DRY_STEPS + 2 * bool(asked.profile), 1, None
        at_once = None
        options = {**options, "save_steps": 1} if "save_steps" in options else options
    if options.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        return write(asked.output, {"skipped": "liger_kernel is not installed"})
    if shape not in SHAPES:
        raise ValueError(f"no shape {shape!r}: expected one of {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory() as folder:
        task = Task(shape=shape, way=way, steps=int(steps), folder=Path(folder), dry_run=asked.dry_run, rows=rows,
                    at_once=at_once, options=options)  # fmt: skip
        found = measure(task, warm_up, asked.profile)
    return write(asked.output, found)


def dry_run(asked: argparse.Namespace) -> dict[str, Any]:
    """Each way with each tiny model, in this process."""
    report: dict[str, Any] = {"dry_run": True, "device": device_name(True), "measured": {}}
    for shape in ("tiny", "tiny_lora"):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                task = Task(shape=shape, way=way, steps=DRY_STEPS, folder=Path(folder), dry_run=True)
                report["measured"][f"{shape} {way}"] = measure(task, 1, None)
            write(asked.output, report)
    return report


def write(output: Path | None, found: dict[str, Any]) -> dict[str, Any]:
    """What is found so far, to the file asked for, whole, and as figures of a stage."""
    if output:
        part = output.with_name(f"{output.name}.part")
        part.write_text(json.dumps(found) + "\n")
        part.replace(output)
    if (path := figures.own_file()) and os.environ.get("RANK", "0") == "0":
        figures.append(path, found)
    return found


def device_name(dry: bool) -> str:
    """The GPU's name."""
    import torch

    return "CPU" if dry else torch.cuda.get_device_name()


def measure(task: Task, warm_up: int, profile: Path | None) -> dict[str, Any]:
    """Train, and sum up the steps after the warm-up.

    Returns:
        `tokens_per_second`, `trained_tokens_per_second` (with a label), `step_seconds` (mean) and `each_step_seconds`;
        `mfu` and `mfu_6n` (see gpu_arithmetic; None on a device of unknown peak), `peak_gib` and `reserved_gib` (of the
        allocator; None on a CPU), `estimated_gib`; what it was: `shape`, `way`, `rows_per_step`, `attention`, and of a
        compiled model its `graphs`, `graphs_by_step` and `graph_breaks`, of one that saves `save_stall_seconds`;
        `profile`, if asked for.
    """
    if task.dry_run:
        stand_in.install()
    calls = len(stand_in.CALLS)
    documents = make_documents(60 if task.dry_run else 20_000, SHAPES[task.shape]["vocab_size"], task.seq_len)
    model_dir = write_model(task.folder / "model", SHAPES[task.shape])
    traced = (task.steps - 2, profile) if profile else None
    with random_weights(), watched_steps(traced) as seen, contextlib.redirect_stdout(sys.stderr):
        train(task, documents, model_dir)
    if task.dry_run and seen.attention == "varlen" and len(stand_in.CALLS) == calls:
        raise RuntimeError(f"{task.way}: the varlen kernel was not called, though it is the model's attention")
    end = warm_up if not profile else min(warm_up, task.steps - 4)
    found = {"shape": task.shape, "way": task.way, "rows_per_step": task.batch[0] * task.batch[1]}
    found |= {"attention": seen.attention, **speed(task, seen, max(end, 1), 2 if profile else 0), **memory(task)}
    return {**found, **compiled(task, seen), **saves(task), **({"profile": seen.profile} if profile else {})}


def speed(task: Task, seen: Watched, warm_up: int, traced: int) -> dict[str, Any]:
    """Of the steps after the warm-up and before those that the profiler slows down."""
    from trl.trainer.utils import get_peak_flops

    steps = seen.steps()[: task.steps - traced]
    ends, counted = [step[0] for step in steps[warm_up - 1 :]], steps[warm_up:]
    if not counted:
        raise ValueError(f"expected more than {warm_up} steps beyond the warm-up, found {len(steps)}: raise STEPS")
    seconds, tokens, trained, pairs = ends[-1] - ends[0], *(sum(step[i] for step in counted) for i in (1, 2, 3))
    peak, shape = get_peak_flops(device_name(task.dry_run), "bfloat16"), SHAPES[task.shape]
    needed = arithmetic.needed_operations(shape, tokens, trained, pairs, lora=task.lora)
    usual = arithmetic.usual_operations(shape, tokens, lora=task.lora)
    return {
        "tokens_per_second": round(tokens / seconds),
        "trained_tokens_per_second": round(trained / seconds),
        "step_seconds": round(seconds / len(counted), 4),
        "each_step_seconds": [round(b - a, 4) for a, b in pairwise(ends)],
        "mfu": round(needed / seconds / peak, 4) if peak else None,
        "mfu_6n": round(usual / seconds / peak, 4) if peak else None,
    }


def memory(task: Task) -> dict[str, Any]:
    """Peaks of the allocator, next to the estimate of the plain way."""
    import torch

    on_gpu = torch.cuda.is_available() and not task.dry_run
    found = {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None}
    found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2) if on_gpu else None
    if on_gpu:
        found["pinned"] = {k: v for k, v in torch.cuda.host_memory_stats().items() if k.endswith("bytes.peak")}
    rows, passes = task.batch
    try:
        size = arithmetic.estimated_bytes(SHAPES[task.shape], rows * task.seq_len, lora=task.lora,
                                          checkpointing=task.lora, passes=passes)  # fmt: skip
    except Exception as error:  # an estimate that fails must not cost what was measured
        return {**found, "estimated_gib": f"{type(error).__name__}: {error}"[:300]}
    return {**found, "estimated_gib": round(size / 2**30, 2)}


def compiled(task: Task, seen: Watched) -> dict[str, Any]:
    """How many graphs were compiled, by the end of which step, and where tracing broke off."""
    if task.way != "packhaul_compiled":
        return {}
    from torch._dynamo.utils import counters

    breaks = sum(counters["graph_break"].values())
    return {"graphs": seen.graphs[-1], "graphs_by_step": seen.graphs, "graph_breaks": breaks}


def saves(task: Task) -> dict[str, Any]:
    """How long training stood still for its checkpoints, as train.sft logs it."""
    if "save_steps" not in task.options:
        return {}
    history = json.loads((task.folder / "run" / "trainer_state.json").read_text())["log_history"]
    return {"save_stall_seconds": [entry["save_stall_seconds"] for entry in history if "save_stall_seconds" in entry]}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
