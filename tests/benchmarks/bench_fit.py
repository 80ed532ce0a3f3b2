"""Estimated memory of a training step against what torch's allocator held, on CPU processes.

    python -m tests.benchmarks.bench_fit [--hidden 512] [--layers 4] [--tokens 1024] [--only full zero2]

Each case trains three steps with train.sft, in processes of their own, while torch's profiler notes each allocation and
each release of its CPU allocator, from before the model is loaded. The estimate is that of `train.memory`, of the same
run config, launch file and shards. Neither knows of the other.

The last line is JSON: {CASE: {"estimated_mib", "measured_mib", "ratio", "parts_mib"}}, measured on the first process,
and "worst", the ratio that is furthest from 1.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.benchmarks.gpu_inputs import make_documents, write_shards
from tests.conftest import ROOT

MIB = 2**20
VOCABULARY = 4000
LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": "all-linear", "learning_rate": 1e-4}
CHECKPOINTING = {"gradient_checkpointing": True}
STEP = {"gradient_accumulation_steps": 2}
BUCKET = 1_000_000  # elements; DeepSpeed's default of 5e8 would be most of what there is
# Case -> (architecture, options, ZeRO stage on two processes; None: one process without a launcher).
CASES: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "full": ("qwen3", {}, None),
    "full_accumulated": ("qwen3", STEP, None),
    "full_checkpointing": ("qwen3", CHECKPOINTING, None),
    "full_adamw_torch": ("qwen3", {"optim": "adamw_torch"}, None),
    "full_gpt_neox": ("gpt_neox", {}, None),
    "lora": ("qwen3", LORA, None),
    "lora_checkpointing": ("llama", {**LORA, **CHECKPOINTING}, None),
    "qlora": ("qwen3", {**LORA, "load_in_4bit": True, "dtype": "float32"}, None),
    "hybrid": ("qwen3_5_text", {}, None),
    "hybrid_checkpointing": ("qwen3_5_text", CHECKPOINTING, None),
    "hybrid_lfm2": ("lfm2", {}, None),
    "bf16_copies": ("qwen3", {"bf16": True, "bf16_copies": True}, None),
    "keep_logits": ("qwen3", {"keep_logits_gib": 0.5}, None),
    "zero1": ("qwen3", STEP, 1),
    "zero2": ("qwen3", STEP, 2),
    "zero2_checkpointing": ("llama", CHECKPOINTING, 2),
    "zero3": ("qwen3", STEP, 3),
    "zero3_checkpointing": ("llama", CHECKPOINTING, 3),
}


def main(argv: list[str] | None = None) -> int:
    """Measure every case, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024, help="of a packed row")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--case", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.case:
        return train(asked.case[0], Path(asked.case[1]))
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {name: measure(name, Path(folder), asked) for name in asked.only}
    found["worst"] = max((case["ratio"] for case in found.values()), key=lambda ratio: abs(ratio - 1))
    print(json.dumps(found))
    return 0


def measure(name: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one case, and estimate it."""
    architecture, options, stage = CASES[name]
    place = folder / name
    config = write_run(place, architecture, options, asked)
    launch = write_launch(place, stage) if stage else None
    own = ["-m", "tests.benchmarks.bench_fit", "--case", name, str(place)]
    starts = [sys.executable]
    if launch:
        starts = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([*starts, *own], cwd=ROOT, check=True, env={**os.environ, **quiet}, stdout=2)  # its errors
    measured = json.loads((place / "measured.json").read_text())["peak"]
    found = estimate(config, launch)
    print(f"{name}: {found.peak / MIB:.0f} MiB estimated, {measured / MIB:.0f} measured", file=sys.stderr, flush=True)
    return {
        "estimated_mib": round(found.peak / MIB, 1),
        "measured_mib": round(measured / MIB, 1),
        "ratio": round(found.peak / measured, 3),
        "parts_mib": {part: round(size / MIB, 1) for part, size in found.parts.items()},
    }


def write_run(place: Path, architecture: str, options: dict[str, Any], asked: Any) -> Path:
    """Model, shards and run config of a case."""
    import yaml

    place.mkdir(parents=True)
    write_model(place / "model", architecture, asked)
    shards = write_shards(place / "shards", make_documents(300, VOCABULARY, asked.tokens), asked.tokens)
    run = {
        "data": str(shards),
        "model_name_or_path": str(place / "model"),
        "output_dir": str(place / "run"),
        "max_steps": 3,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-5,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "pad_to_multiple_of": asked.tokens,
        **options,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(run))
    return place / "run.yaml"


def write_launch(place: Path, stage: int) -> Path:
    """DeepSpeed on two CPU processes, as configs/accelerate has it, with small buckets."""
    import yaml

    launch = yaml.safe_load((ROOT / f"configs/accelerate/cpu_zero{stage}.yaml").read_text())
    settings = json.loads((ROOT / launch["deepspeed_config"]["deepspeed_config_file"]).read_text())
    if stage < 3:
        settings["zero_optimization"]["reduce_bucket_size"] = BUCKET
    (place / "deepspeed.json").write_text(json.dumps(settings))
    launch["deepspeed_config"]["deepspeed_config_file"] = str(place / "deepspeed.json")
    (place / "launch.yaml").write_text(yaml.safe_dump({**launch, "num_processes": 2}))
    return place / "launch.yaml"


def write_model(folder: Path, architecture: str, asked: Any) -> None:
    """Random weights in fp32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": asked.hidden, "intermediate_size": 3 * asked.hidden, "num_hidden_layers": asked.layers}
    heads = {"num_attention_heads": 8} if architecture == "gpt_neox" else {
        "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}  # fmt: skip
    extra = _own_shape(architecture, asked)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    config = AutoConfig.for_model(architecture, **shape, **heads, **extra, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _own_shape(architecture: str, asked: Any) -> dict[str, Any]:
    """What configurations have besides: of hybrids, as many kinds of layers as `--layers` allows."""
    head = asked.hidden // 8
    if architecture == "lfm2":
        return {"layer_types": [("full_attention" if i % 3 == 2 else "conv") for i in range(asked.layers)]}
    linear = {f"linear_{of}_head_dim": head for of in ("key", "value")}
    linear |= {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "full_attention_interval": 3}
    return {"qwen3": {"head_dim": head}, "qwen3_5_text": {"head_dim": head, **linear}}.get(architecture, {})


def estimate(config_file: Path, launch: Path | None) -> Any:
    """As preflight does."""
    from data_prep.shards import read_manifest
    from train.checks.launch import launch_from_file
    from train.config.run_config import load_run_config
    from train.memory.preflight_page import make_fit

    config = load_run_config(["--config", str(config_file)])
    file = launch_from_file(launch) if launch else None
    fit, _ = make_fit(config, read_manifest(config.own.data), file, 2 if launch else 1, None)
    return fit.estimate


def train(name: str, place: Path) -> int:
    """In a process of its own: train, the first process under the profiler, and write its peak."""
    from torch.profiler import ProfilerActivity, profile

    from train.sft import main as sft

    words = ["--config", str(place / "run.yaml")]
    if os.environ.get("RANK", "0") != "0":
        return sft(words)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        code = sft(words)
    (place / "measured.json").write_text(json.dumps({"peak": peak(watched)}))
    return code


def peak(watched: Any) -> int:
    """The most bytes at once, from the allocator's own notes of each allocation and release.

    The profiler has no note of what another thread releases, and gloo's threads release what a collective operation
    has used: by its notes alone ZeRO-3 seemed to take up to 16 % more, and another number each time. Where memory is
    given out again, what was there before is gone.
    """
    now = most = 0
    starts: list[int] = []  # addresses of what is alive, ascending
    sizes: dict[int, int] = {}
    for event in allocations(watched):
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        place = bisect.bisect_left(starts, address)
        if size > 0:
            place -= bool(place) and starts[place - 1] + sizes[starts[place - 1]] > address
            while place < len(starts) and starts[place] < address + size:
                now -= sizes.pop(starts.pop(place))
            starts.insert(place, address)
            sizes[address] = size
            now += size
        elif address in sizes:
            now -= sizes.pop(starts.pop(place))
        most = max(most, now)
    return most


def allocations(watched: Any) -> list[Any]:
    """Events of allocations and releases, in the order of time."""
    from torch._C._profiler import _EventType

    found, left = [], list(watched.profiler.kineto_results.experimental_event_tree())
    while left:
        event = left.pop()
        left += event.children
        if event.tag == _EventType.Allocation:
            found.append(event)
    return sorted(found, key=lambda event: event.start_time_ns)


if __name__ == "__main__":
    sys.exit(main())
