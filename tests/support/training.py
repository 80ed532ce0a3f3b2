"""What the training tests share: small shards, a launch of train.sft, and an independent reference."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from data_prep.prepare import prepare
from data_prep.recipe import Recipe
from data_prep.shards import read_manifest, read_rows, shard_files
from tests.conftest import CORPUS, ROOT

TIMEOUT = 900  # seconds for one launch; a hang is a failure


def make_shards(folder: Path, tokenizer_dir: str, answers: dict[str, list[int]], **recipe: Any) -> Path:
    """Prepare shards. `answers`: per source how many sentences each answer has; the questions differ."""
    sources = []
    for name, sizes in answers.items():
        rows = [{"question": f"{name} {i}?", "answer": " ".join([CORPUS[i % 8]] * n)} for i, n in enumerate(sizes)]
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        sources.append({"name": name, "path": str(path), "form": "question_answer"})
    full = {"tokenizer": tokenizer_dir, "chat_template": "chatml", "seq_len": 256, "sources": sources, **recipe}
    prepare(Recipe.model_validate(full), folder / "shards", num_workers=1)
    return folder / "shards"


def run_config(path: Path, **options: Any) -> Path:
    """A run config for two CPU processes, in fp32, every step logged."""
    defaults = {
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "seed": 7,
        "expected_world_size": 2,
        "expected_distributed_type": "DEEPSPEED",
    }
    path.write_text(yaml.safe_dump({**defaults, **options}))
    return path


def environment(**extra: str) -> dict[str, str]:
    """Offline, unbuffered, one thread per process."""
    base = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "WANDB_MODE": "offline"}
    return {**os.environ, **base, **extra}


def launch(accelerate: str, config: Path, log: Path, *flags: str, own: bool = False) -> subprocess.Popen:
    """Start `accelerate launch -m train.sft`, or our own train.launch, in its own process group, output into `log`."""
    command = (
        [sys.executable, "-m", "train.launch"] if own else [Path(sys.executable).with_name("accelerate"), "launch"]
    )
    command += ["--config_file", f"configs/accelerate/{accelerate}.yaml", "--main_process_port", "0"]
    command += ["-m", "train.sft", "--config", str(config), *flags]
    with log.open("w") as out:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def train(accelerate: str, config: Path, log: Path, *flags: str) -> str:
    """Run to the end; the output. Fails with the output if the exit code is not 0."""
    process = launch(accelerate, config, log, *flags)
    try:
        code = process.wait(TIMEOUT)
    finally:
        kill(process)
    assert code == 0, log.read_text()[-6000:]
    return log.read_text()


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all its processes, each of which is in a session of its own."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)
    process.wait()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    """Wait for a condition while the process lives."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, log.read_text()[-6000:]
        assert time.monotonic() < deadline, f"timed out; {log.read_text()[-3000:]}"
        time.sleep(0.05)


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The logged metrics of a finished run, at full precision."""
    return json.loads((run_dir / "trainer_state.json").read_text())["log_history"]


def document_rows(shards: Path, split: str) -> list[list[tuple[list[int], list[int], int]]]:
    """(ids, labels, source) of each document, unpacked, by row."""
    found = []
    for path in shard_files(shards, read_manifest(shards), split):
        for row in read_rows(path):
            start, found_here = 0, []
            for length, source in zip(row["seq_lengths"], row["sources"], strict=True):
                ids, labels = (row[k][start : start + length].tolist() for k in ("input_ids", "labels"))
                found_here.append((ids, labels, int(source)))
                start += length
            found.append(found_here)
    return found


def documents(shards: Path, split: str) -> list[tuple[list[int], list[int], int]]:
    """(ids, labels, source) of each document, unpacked."""
    return [document for row in document_rows(shards, split) for document in row]


def document_loss(model: Any, document: tuple[list[int], list[int], int]) -> tuple[Any, int]:
    """Sum of the cross-entropy of one document alone, and its trained tokens."""
    import torch

    ids, labels, _ = document
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
    targets = torch.tensor(labels[1:], dtype=torch.long)  # may be empty
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    return loss, int((targets != -100).sum())
