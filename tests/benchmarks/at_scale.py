"""What 128 nodes x 8 GPUs would see of start-up, checkpoints and failures, from what is measured here.

    python -m tests.benchmarks.at_scale [--gpus 1024] [--parameters 8e9] [--bandwidth 50] [--block-mib 256]
        [--folder DIR]

Measured: calls that name a file, and bytes read, of one process from its start to its end after one step (strace, if
it is installed; else None); bytes of a checkpoint for each parameter (ZeRO-3, bf16, two processes); rates of copying,
digesting, and writing, digesting and flushing with one process. Assumed, and printed: the bandwidth of the shared
file system, the rate of its metadata server, the link of a GPU to its host, and the mean time between failures of one
GPU: 16,384 GPUs had 419 unexpected interruptions in 54 days (The Llama 3 Herd of Models, arXiv 2407.21783).
docs/scale.md has the formulas. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.conftest import ROOT

GPU_HOURS = 16_384 * 54 * 24 / 419  # between failures
GATHER = 20e9  # bytes a second at which the first process gets the weights of all, assumed: one GPU's link to its host
FILE_CALLS = 100_000  # a second that the metadata server of a shared file system answers, assumed


def main(argv: list[str] | None = None) -> int:
    """Measure, derive, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1024)
    parser.add_argument("--parameters", type=float, default=8e9)
    parser.add_argument("--bandwidth", type=float, default=50.0, help="GB/s of the shared file system, assumed")
    parser.add_argument("--folder", type=Path, help="where to work: the file system is measured too")
    parser.add_argument("--block-mib", type=int, default=256, help="MiB that are copied, digested and written")
    options = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        measured = {**rates(Path(temporary), options.block_mib * 2**20), **run_inputs(Path(temporary))}
    derived = derive(measured, options.gpus, options.parameters, options.bandwidth)
    assumed = {"gpus": options.gpus, "parameters": options.parameters, "bandwidth_gb_s": options.bandwidth}
    assumed |= {"gather_gb_s": GATHER / 1e9, "file_calls_a_second": FILE_CALLS, "gpu_hours": round(GPU_HOURS)}
    print(json.dumps({"measured": measured, "assumed": assumed, "derived": derived}))
    return 0


def rates(folder: Path, size: int) -> dict[str, float]:
    """GB/s of one process, for so many bytes: the best of three, since other work on the machine only takes away."""
    import torch

    from train.checkpoint.host_copies import CopyMemory
    from train.run.atomic_files import digest, flush

    state = {"x": torch.randint(0, 255, (size,), dtype=torch.uint8)}
    memory, file = CopyMemory(), folder / "block"
    seconds: dict[str, list[float]] = {"copy": [], "digest": [], "write": []}
    for _ in range(4):
        began = time.perf_counter()
        memory.snapshot(state)
        seconds["copy"].append(time.perf_counter() - began)
        memory.release()
        began = time.perf_counter()
        torch.save(state, file)
        flush([file])  # digested and flushed, as a save is
        seconds["write"].append(time.perf_counter() - began)
        began = time.perf_counter()
        digest(file)
        seconds["digest"].append(time.perf_counter() - began)
    return {f"{name}_gb_s": round(size / min(found[1:]) / 1e9, 2) for name, found in seconds.items()}


def run_inputs(folder: Path) -> dict[str, float | None]:
    """What a start and a checkpoint take."""
    from tests.conftest import build_tiny_tokenizer, save_tiny_model
    from tests.support.training import make_shards, run_config

    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "head_dim": 64}
    model = save_tiny_model("llama", build_tiny_tokenizer(folder / "tokenizer"), folder / "model", sizes)
    shards = make_shards(folder, str(folder / "tokenizer"), {"short": [1] * 40})
    config = {
        "data": str(shards),
        "model_name_or_path": str(folder / "model"),
        "max_steps": 1,
        "save_strategy": "steps",
    }
    run = run_config(folder / "run.yaml", **config, output_dir=str(folder / "run"), save_steps=1, bf16=True)
    launch(folder, run)
    parameters = count_parameters(folder / "model")
    assert model is None or parameters
    size = checkpoint_bytes(folder / "run" / "checkpoint-1")
    options = {"expected_world_size": 1, "expected_distributed_type": "NO", "output_dir": str(folder / "alone")}
    alone = run_config(folder / "alone.yaml", **{**config, **options, "save_strategy": "no"})
    command = [sys.executable, "-m", "train.sft", "--config", str(alone)]
    return {"bytes_per_parameter": round(size / parameters, 2), **start_up(command, folder / "calls")}


def launch(folder: Path, config: Path) -> None:
    """Two processes under ZeRO-3, for a checkpoint."""
    plan = [{"accelerate": "cpu_zero3", "processes": 2, "flags": ["--config", str(config)], "log": str(folder / "log")}]
    (folder / "plan.json").write_text(json.dumps(plan))
    subprocess.run([sys.executable, "-m", "tests.support.world_runs", str(folder / "plan.json")], cwd=ROOT, check=True)


def count_parameters(model: Path) -> int:
    """Of a saved model."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def checkpoint_bytes(folder: Path) -> int:
    """Tensors' files only: tokenizer and JSON do not grow with the model."""
    from train.checkpoint import folders

    files = folders.read(folder).files.items()
    return sum(record.size for name, record in files if name.endswith((".safetensors", "_states.pt")))


def start_up(command: list[str], out: Path) -> dict[str, float | None]:
    """Calls that name a file, and MiB read by one process, from its start to its end; None without strace."""
    if shutil.which("strace") is None:
        return {"file_calls": None, "mib_read": None}
    traced = ["strace", "-f", "--seccomp-bpf", "-e", "trace=%file,read,pread64,mmap", "-o", str(out), *command]
    subprocess.run(traced, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    calls = read = 0
    for line in out.open(errors="replace"):
        if (found := re.match(r"\d+ +(\w+)\(", line)) is None:
            continue
        if found[1] in ("read", "pread64"):
            size = re.search(r"= (\d+)$", line.rstrip())
            read += int(size[1]) if size else 0
        else:
            calls += found[1] != "mmap"
    return {"file_calls": calls, "mib_read": round(read / 2**20)}


def derive(measured: dict[str, Any], gpus: int, parameters: float, bandwidth: float) -> dict[str, float]:
    """The formulas of docs/scale.md."""
    weights, total = 2 * parameters, measured["bytes_per_parameter"] * parameters
    own, mtbf = (total - weights) / gpus, GPU_HOURS / gpus * 3600
    stall = own / (measured["copy_gb_s"] * 1e9) + weights / GATHER
    write = max((own + weights) / (measured["write_gb_s"] * 1e9), total / (bandwidth * 1e9))
    figures = {
        "checkpoint_gb": total / 1e9,
        "states_gb_of_a_process": own / 1e9,
        "weights_gb_of_the_first": weights / 1e9,
        "stall_seconds": stall,
        "write_seconds": write,
        "mtbf_hours": mtbf / 3600,
    }
    if measured["file_calls"]:
        figures["start_up_seconds_of_a_shared_environment"] = measured["file_calls"] * gpus / FILE_CALLS
    for name, cost in (("background", stall), ("at_once", stall + write)):
        interval = max(daly(cost, mtbf), cost)
        figures[f"interval_{name}_minutes"] = interval / 60
        figures[f"lost_{name}_percent"] = 100 * (cost / interval + (interval / 2 + write) / mtbf)
    return {name: float(f"{value:.3g}") for name, value in figures.items()}


def daly(cost: float, mtbf: float) -> float:
    """Seconds between saves that lose least (Daly 2006, its higher-order formula; Young's is the first factor)."""
    if cost >= 2 * mtbf:
        return mtbf
    ratio = math.sqrt(cost / (2 * mtbf))
    return math.sqrt(2 * cost * mtbf) * (1 + ratio / 3 + ratio**2 / 9) - cost


if __name__ == "__main__":
    sys.exit(main())
