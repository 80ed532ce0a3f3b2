"""Real data through the path: a mixture prepared with the Gemma 3 tokenizer, and a real model fine-tuned.

    python -m tests.benchmarks.real_data --data ../shared/data [--output FOLDER] [--steps 150]

1. Alpaca 52k + KoAlpaca + MedQuAD in one recipe, Gemma 3 tokenizer and template, seq_len 4,096: rows, drops by reason,
   tokens, packing efficiency, seconds.
2. stories260K (a pre-trained Llama of 260,032 parameters that knows only children's stories) fine-tuned on Alpaca
   and Dolly under ZeRO-2, two CPU processes: token-weighted loss on held-out rows per source, before and after.

The last line is JSON with both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import yaml

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    """Run both parts; 0 if every command succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets, tokenizers and models")
    parser.add_argument("--output", type=Path, help="keep what is made here (a temporary folder)")
    parser.add_argument("--steps", type=int, default=150, help="of the fine-tuning")
    arguments = parser.parse_args(argv)
    data = arguments.data.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        output = arguments.output or Path(temporary)
        result = {
            "mixture": prepare_mixture(data, output / "mixture"),
            "stories260K": finetune(data, output / "stories", arguments.steps),
        }
    print(json.dumps(result, ensure_ascii=False))
    return 0


def prepare_mixture(data: Path, folder: Path) -> dict[str, Any]:
    """Part 1."""
    sources = [
        {"name": "alpaca", "path": str(data / "text/en/alpaca_52k.json"), "form": "alpaca"},
        {"name": "koalpaca", "path": str(data / "text/ko/koalpaca_v1_11432.json"), "form": "alpaca"},
        {"name": "medquad", "path": str(data / "text/med/medquad_nih.jsonl"), "form": "question_answer"},
    ]
    tokenizer = str(data / "tokenizers/gemma3")
    recipe = {"tokenizer": tokenizer, "chat_template": "gemma", "seq_len": 4096, "sources": sources}
    manifest, seconds = prepare(recipe, folder)
    rows = sum(split["rows"] for split in manifest["splits"].values())
    tokens = sum(split["tokens"] for split in manifest["splits"].values())
    return {
        "sources": [
            {k: s[k] for k in ("name", "rows", "kept", "dropped", "eval_documents")} for s in manifest["sources"]
        ],
        "splits": {name: {k: v for k, v in s.items() if k != "shards"} for name, s in manifest["splits"].items()},
        "tokens": tokens,
        "efficiency": round(tokens / (rows * manifest["seq_len"]), 5),
        "seconds": round(seconds, 1),
        "num_workers": 2,
    }


def prepare(recipe: dict[str, Any], folder: Path) -> tuple[dict[str, Any], float]:
    """The manifest, and the seconds that the whole command took."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    started = time.monotonic()
    command = [sys.executable, "-m", "data_prep.prepare", "--recipe", str(folder / "recipe.yaml")]
    run([*command, "--output", str(folder / "shards"), "--num-workers", "2"])
    return json.loads((folder / "shards/manifest.json").read_text(encoding="utf-8")), time.monotonic() - started


def finetune(data: Path, folder: Path, steps: int) -> dict[str, Any]:
    """Part 2. The model's context is 512 tokens, its tokenizer knows few words: long rows are dropped, counted."""
    model = data / "models/stories260K-hf"
    dolly = {"question": "instruction", "answer": "text"}
    sources = [
        {"name": "alpaca", "path": str(data / "text/en/alpaca_52k.json"), "form": "alpaca", "first": 12000},
        {
            "name": "dolly",
            "path": str(data / "text/en/dolly_6400_no_context.jsonl"),
            "form": "question_answer",
            "columns": dolly,
        },
    ]
    recipe = {"tokenizer": str(model), "chat_template": "alpaca", "seq_len": 512, "sources": sources}
    manifest, _ = prepare(recipe, folder)
    options = {
        "data": str(folder / "shards"),
        "model_name_or_path": str(model),
        "output_dir": str(folder / "run"),
        "expected_world_size": 2,
        "expected_distributed_type": "DEEPSPEED",
        "max_steps": steps,
        "per_device_train_batch_size": 1,  # rows of a batch are one sequence, whose mask costs its square on a CPU
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // 2),
        "eval_on_start": True,
        "logging_steps": 20,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(options))
    started = time.monotonic()
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_zero2.yaml"]
    run([*launch, "--main_process_port", free_port(), "-m", "train.sft", "--config", str(folder / "run.yaml")])
    seconds = time.monotonic() - started
    history = json.loads((folder / "run/trainer_state.json").read_text())["log_history"]
    evaluations = [h for h in history if "eval_loss" in h]
    names = ["eval_loss", *(f"eval_{s['name']}_loss" for s in sources)]
    return {
        "dropped": {s["name"]: s["dropped"] for s in manifest["sources"]},
        "train_tokens": manifest["splits"]["train"]["tokens"],
        "eval_documents": manifest["splits"]["eval"]["documents"],
        "before": {name: round(evaluations[0][name], 4) for name in names},
        "after": {name: round(evaluations[-1][name], 4) for name in names},
        "steps": evaluations[-1]["step"],
        "seconds": round(seconds, 1),
    }


def run(command: list[str]) -> None:
    """Run a command of the path from the repository root; its output goes to standard error."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True)


def free_port() -> str:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
