"""The whole path on a laptop, from a generated instruction set to answers about words that training never saw.

A tokenizer, shards, ZeRO-2 training on two CPU processes and an export lie between.

    python -m tests.benchmarks.quickstart [--output runs/quickstart]

No GPU, no hub. The last line is JSON: `before` and `after` (exact match by task), `seconds`. Exit code 1 if fewer than
four tasks were learnt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.benchmarks.quickstart_commands import cpu_seconds, environment, flags, free_port, module, run
from tests.benchmarks.quickstart_tasks import TASKS, write_instruction_set

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_OUTPUT = "runs/quickstart"
RECIPE, RUN_CONFIG = "configs/data/quickstart.yaml", "configs/train/quickstart.yaml"
LAUNCH_CONFIG = "configs/accelerate/cpu_zero2.yaml"
TRAIN_ROWS, HELD_OUT_ROWS = 2800, 50  # for each task
LEARNT, UNKNOWN, WANTED_TASKS = 0.8, 0.05, 4  # exact match after at least, before at most, in at least so many tasks
MARKER = "quickstart.json"


def main(argv: list[str] | None = None) -> int:
    """Run it all; 0 when enough tasks were learnt, 1 when not or when a step failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.quickstart", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", default=DEFAULT_OUTPUT, help="folder for everything it makes (%(default)s)")
    arguments = parser.parse_args(argv)
    os.chdir(ROOT)  # the configs' paths are relative to the repository root
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # progress is seen when it is made
    try:
        return quickstart(Path(arguments.output))
    except ValueError as error:
        print(f"quickstart: error: {error}", file=sys.stderr)
        return 1


def quickstart(output: Path) -> int:
    """Make everything under `output`; the exit code."""
    started = time.monotonic()
    _start_afresh(output)
    os.environ.update(environment())
    make_inputs(output)
    prepare(output)
    train(output)
    run("export", module("train.export") + flags(checkpoint=output / "run", output=output / "export"), output)
    before, after, samples = compare(output)
    print_table(before, after, samples)
    print_next_steps(output)
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s in all ({cpu_seconds():.0f} s of CPU time)")
    result = {"before": before, "after": after, "seconds": round(seconds, 1)}
    passed = _judge(before, after)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    return 0 if passed else 1


# Steps.


def make_inputs(output: Path) -> None:
    """The instruction set, the tokenizer and the untrained model."""
    from tests.benchmarks.quickstart_model import make_model, train_tokenizer

    write_instruction_set(output / "data", train_rows=TRAIN_ROWS, held_out_rows=HELD_OUT_ROWS)
    rows, held_out = TRAIN_ROWS * len(TASKS), HELD_OUT_ROWS * len(TASKS)
    print(f"data       {rows:,} training rows of {len(TASKS)} tasks in English and Korean; {held_out} held out")
    tokens = train_tokenizer(sorted((output / "data").glob("train_*.jsonl")), output / "tokenizer")
    parameters = make_model(output / "tokenizer", output / "base_model")
    print(f"model      {parameters:,} random parameters, {tokens} tokens in the vocabulary")


def prepare(output: Path) -> None:
    """Packed shards. One worker: a second one costs more time to start than it saves on so few rows."""
    options = [*flags(recipe=_recipe(output), output=output / "shards"), "--num-workers", "1"]
    run("prepare", module("data_prep.prepare") + options, output)


def train(output: Path) -> None:
    """ZeRO-2 on two CPU processes, as a user launches it."""
    launch = module("accelerate.commands.launch") + flags(config_file=LAUNCH_CONFIG, main_process_port=free_port())
    if not list(Path(os.environ.get("TORCH_EXTENSIONS_DIR", sys.prefix)).glob("**/deepspeed_shm_comm.so")):
        print("           the first run compiles an operator of DeepSpeed's: about a minute more")
    paths = flags(data=output / "shards", model_name_or_path=output / "base_model", output_dir=output / "run")
    run("train", [*launch, "-m", "train.sft", *flags(config=RUN_CONFIG), *paths], output)


def compare(output: Path) -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Exact match by task before and after training, and sample answers, on the held-out rows."""
    lines = (output / "data" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    # The untrained model is asked through the same tokenizer and chat template.
    base = answer(rows, output / "base_model", output / "shards" / "tokenizer")
    tuned = answer(rows, output / "export", output / "export")
    shown = range(0, len(rows), len(rows) // 5)
    samples = [_sample(rows[i], base[i], tuned[i]) for i in shown][:5]
    return exact_match(rows, base), exact_match(rows, tuned), samples


def answer(rows: list[dict[str, str]], model_dir: Path, tokenizer_dir: Path) -> list[str]:
    """Greedy answers to all rows in one batch, as plain transformers gives them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    chats = [[{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}] for row in rows]
    batch: Any = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        made = model.generate(**batch, do_sample=False, max_new_tokens=12)
    return tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def exact_match(rows: list[dict[str, str]], answers: list[str]) -> dict[str, float]:
    """Share of right answers by task."""
    right: dict[str, list[bool]] = {}
    for row, given in zip(rows, answers, strict=True):
        right.setdefault(row["task"], []).append(given == row["output"])
    return {task: sum(hits) / len(hits) for task, hits in right.items()}


def learnt_tasks(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Tasks that were unknown before and are known after."""
    return [task for task in after if before[task] <= UNKNOWN and after[task] >= LEARNT]


# What is shown.


def print_table(before: dict[str, float], after: dict[str, float], samples: list[str]) -> None:
    """Exact match by task, then the sample answers."""
    print(f"\nExact match on {HELD_OUT_ROWS} held-out words for each task:\n\n  {'task':<14}{'before':>8}{'after':>8}")
    for task in after:
        print(f"  {task:<14}{before[task]:>8.0%}{after[task]:>8.0%}")
    print("\nFive of the answers:\n\n" + "\n".join(samples))


def print_next_steps(output: Path) -> None:
    """Where things are, and how to go on with other data and another model."""
    print(f"""
Where it is:
  {output}/data         the instruction set
  {output}/tokenizer    trained on it; base_model beside it is the untrained model
  {output}/shards       packed rows and their manifest.json
  {output}/run          checkpoints and the offline W&B run
  {output}/export       the tuned model, for plain transformers
  {output}/logs         what each step printed

Ask it:
  packhaul generate --model {output}/export --prompt $'단어를 거꾸로 쓰세요.\\n\\n나비'

Next, your own data and a model from the hub, on one GPU: set `tokenizer: Qwen/Qwen3-0.6B` and your file's `path`
in configs/data/example_local.yaml, then
  packhaul prepare --recipe configs/data/example_local.yaml --output runs/mine/shards
  accelerate launch --config_file configs/accelerate/single_gpu.yaml \\
    -m train.sft --config configs/train/example_lora.yaml --data runs/mine/shards \\
    --model_name_or_path Qwen/Qwen3-0.6B --output_dir runs/mine/run --run_name mine
""")


def _sample(row: dict[str, str], base: str, tuned: str) -> str:
    mark = "right" if tuned == row["output"] else f"wrong, expected {row['output']}"
    return f"  {row['instruction']} {row['input']}\n    before: {base!r:.40}\n    after:  {tuned} ({mark})"


def _judge(before: dict[str, float], after: dict[str, float]) -> bool:
    learnt = learnt_tasks(before, after)
    if len(learnt) >= WANTED_TASKS:
        return True
    print(
        f"quickstart: error: expected at least {WANTED_TASKS} tasks at {LEARNT:.0%} or more that were at {UNKNOWN:.0%} "
        f"or less before, found {len(learnt)}: {learnt}. The logs and the losses above say which step went wrong",
        file=sys.stderr,
    )
    return False


# Helpers.


def _start_afresh(output: Path) -> None:
    """Remove an earlier quickstart's folder, and nothing else.

    Raises:
        ValueError: the folder holds something that no quickstart made.
    """
    if output.exists() and any(output.iterdir()):
        if not (output / MARKER).exists():
            raise ValueError(f"--output {output} holds files that no quickstart made: choose another folder")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARKER).write_text(json.dumps({"made_by": "tests.benchmarks.quickstart"}) + "\n")


def _recipe(output: Path) -> Path:
    """The shipped recipe, or for another output a copy of it with the paths moved."""
    if output == Path(DEFAULT_OUTPUT):
        return Path(RECIPE)
    moved = output / "recipe.yaml"
    moved.write_text(Path(RECIPE).read_text(encoding="utf-8").replace(DEFAULT_OUTPUT, str(output)), encoding="utf-8")
    return moved


if __name__ == "__main__":
    sys.exit(main())
