"""Train in this process and count, for each step, what the host asks of the device and of the other processes.

In worlds of test_step_end.py, with the path of a JSON file of settings: `shards`, `model`, `folder` and `runs`, each
with `options` of the trainer and a `signal`: rank, step, "before" or "after" the step's forward. Writes
FOLDER/rankN.json, for each run: `counts` (one dict a step), `last_step`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from tests.support.in_process_trainer import make_trainer
from train.run.preemption import Signals
from train.run.preemption_callback import PreemptionCallback

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier")


def reader() -> str:
    """The function that reads: the innermost one outside torch and the tests, as "module.function"."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("torch", "tests", "__main__"):
        frame = frame.f_back
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"


class Reads(TorchDispatchMode):
    """Counts values that the host reads from tensors; on a GPU it waits for each."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.counts[f"item in {reader()}"] += 1
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor: copied to the device, with a wait
            self.counts[f"tensor in {reader()}"] += 1
        return func(*args, **(kwargs or {}))


def count_calls(owner: Any, name: str, counts: Counter[str], word: str) -> None:
    """Count the calls of a function of a module or class, by who calls it."""
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts[f"{word} in {reader()}"] += 1
        return original(*args, **kwargs)

    setattr(owner, name, counted)


class Steps(TrainerCallback):
    """Notes the counts of each step, and sends the signal."""

    def __init__(self, counts: Counter[str], wanted: list[Any]):
        self.counts, self.wanted, self.noted = counts, wanted, []

    def send(self, state: Any, moment: str) -> None:
        if self.wanted == [int(os.environ.get("RANK", "0")), state.global_step + 1, moment]:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counts.clear()
        self.send(state, "before")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.send(state, "after")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.noted.append(dict(self.counts))


def run(settings: dict[str, Any], one: dict[str, Any], counts: Counter[str]) -> dict[str, Any]:
    """Train once; what was counted."""
    signals = Signals()
    signals.install()
    steps, stop = Steps(counts, one["signal"]), PreemptionCallback(signals)
    folders = [Path(settings[name]) for name in ("shards", "model", "folder")]
    options = {"logging_steps": 1000, **one["options"]}
    trainer = make_trainer(*folders, callbacks=[stop, steps], stop=stop, **options)
    with Reads(counts):
        trainer.train()
    assert stop.agreed
    world, rank = trainer.args.world_size, trainer.args.process_index
    return {"world": world, "rank": rank, "counts": steps.noted, "last_step": trainer.state.global_step}


def main(words: list[str]) -> int:
    """All runs of SETTINGS.json."""
    settings = json.loads(Path(words[0]).read_text())
    counts: Counter[str] = Counter()
    for owner, name in [(torch.Tensor, "tolist"), *((torch.distributed, name) for name in COLLECTIVES)]:
        count_calls(owner, name, counts, name)
    found = [run(settings, one, counts) for one in settings["runs"]]
    (Path(settings["folder"]) / f"rank{found[0]['rank']}.json").write_text(json.dumps(found))
    return 0
