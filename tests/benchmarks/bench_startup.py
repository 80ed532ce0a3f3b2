"""Time from `accelerate launch` to the end of the first step, next to plain TRL, with the same model and rows.

    python -m tests.benchmarks.bench_startup --data ../shared/data [--rounds 5]

One CPU process, Alpaca's 52,002 rows packed to 2,048 tokens, a tiny model whose step takes next to nothing. `packhaul`
is `train.sft` with all its checks; `packhaul_python` the same by `python -m`, as one process needs no launcher;
`trl_rows` a plain script around SFTTrainer that is given the same packed rows; `trl_text` one that is given the text,
as TRL's users do, and prepares it at each start. The first three take turns, each time into a new output folder: a
finished run would not train again. Seconds are those of the CPU, of the
launcher and its process together (`_wall`: of the clock), since other work on the machine does not count then. The last
line is JSON: seconds (medians) and the ratios to TRL's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
LAUNCH = [str(BIN / "accelerate"), "launch", "--config_file", "configs/accelerate/cpu_single.yaml", "-m"]
TURNS = ("packhaul", "packhaul_python", "trl_rows")
FIRST_STEP = ("'loss'", "sft: step ")  # in the line that TRL's trainer, and ours, print after it


def main(argv: list[str] | None = None) -> int:
    """Make the inputs, then the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5, help="1 or more")
    options = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        prepare_shards(folder, options.data)
        rows = []
        for number in range(options.rounds):
            commands = make_commands(folder, options.data, folder / f"round-{number}")
            rows.append({way: first_step(commands[way]) for way in TURNS})
        text = first_step(commands["trl_text"])
    print(json.dumps(summary(rows, text)))
    return 0


def make_commands(folder: Path, data: Path, outputs: Path) -> dict[str, list[str]]:
    """What is launched, with the model and the shards in `folder`; each has its own folder in `outputs`."""
    import yaml

    from tests.benchmarks.trl_training import CPU, STEP

    names = {"data": str(folder / "shards"), "model_name_or_path": str(folder / "model")}
    (folder / "run.yaml").write_text(yaml.safe_dump({**STEP, **CPU, **names, "attn_implementation": "sdpa"}))
    ours = ["train.sft", "--config", str(folder / "run.yaml"), "--output_dir"]
    trl = [*LAUNCH, "tests.benchmarks.trl_training", "--model", str(folder / "model"), "--data"]
    text = data.resolve() / "text/en/alpaca_52k.json"
    return {
        "packhaul": [*LAUNCH, *ours, str(outputs / "packhaul")],
        "packhaul_python": [sys.executable, "-m", *ours, str(outputs / "packhaul_python")],
        "trl_rows": [*trl, str(folder / "shards"), "--output", str(outputs / "trl_rows")],
        "trl_text": [*trl, str(text), "--output", str(outputs / "trl_text")],
    }


def prepare_shards(folder: Path, data: Path) -> None:
    """Alpaca, packed, in `folder / "shards"`; the tokenizer is that of the model."""
    from data_prep.prepare import prepare
    from data_prep.recipe import Recipe

    source = {"name": "alpaca", "path": str(data / "text/en/alpaca_52k.json"), "form": "alpaca"}
    recipe = {"tokenizer": str(folder / "model"), "chat_template": "chatml", "seq_len": 2048}
    with contextlib.redirect_stdout(sys.stderr):
        prepare(Recipe.model_validate({**recipe, "sources": [source]}), folder / "shards", num_workers=2)


def write_model(folder: Path) -> None:
    """A random model of two small layers, and its tokenizer of 640 tokens."""
    from tests.conftest import build_tiny_tokenizer, save_tiny_model

    folder.mkdir()
    save_tiny_model("llama", build_tiny_tokenizer(folder), folder, {"max_position_embeddings": 2048})


def first_step(command: list[str]) -> dict[str, float]:
    """Launch one step, and look at the clocks when it is done."""
    log: list[str] = []
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line)
        if any(word in line for word in FIRST_STEP):
            found = {"wall": time.monotonic() - began, "cpu": cpu_seconds(process.pid)}
            break
    else:
        raise RuntimeError(f"{command} did not come to its first step:\n{''.join(log[-30:])}")
    log.append(process.stdout.read())  # to its end, so that nothing is left behind
    if process.wait():
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{''.join(log)[-3000:]}")
    print(f"{' '.join(command[:8])}: {found}", file=sys.stderr, flush=True)
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process and all below it, those that have ended included."""
    total = 0.0
    for member in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(member.cpu_times()[:4])
    return total


def summary(rounds: list[dict[str, dict[str, float]]], text: dict[str, float]) -> dict[str, Any]:
    """Medians."""
    found: dict[str, float] = {}
    for kind, end in (("cpu", ""), ("wall", "_wall")):
        found |= {f"{way}{end}": statistics.median(r[way][kind] for r in rounds) for way in TURNS}
        found[f"trl_text{end}"] = text[kind]
        for way in ("packhaul", "packhaul_python"):
            ratios = [r[way][kind] / r["trl_rows"][kind] for r in rounds]
            found[f"{way}_to_trl_rows{end}"] = statistics.median(ratios)
            found[f"{way}_to_trl_text{end}"] = found[f"{way}{end}"] / text[kind]
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(main())
