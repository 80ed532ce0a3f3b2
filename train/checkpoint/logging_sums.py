"""Sums since the last line of the log, of each rank: the Trainer and TRL lose them at a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from train.checkpoint.folders import Checkpoint

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer


def write_counters(trainer: CheckpointedTrainer, folder: Path) -> None:
    """Write the sums of this rank."""
    metrics = {name: list(values) for name, values in trainer._metrics["train"].items()}
    metrics.pop("save_stall_seconds", None)
    content = {
        "loss": float(trainer._tr_loss),  # float64 holds any float32
        "last_logged": trainer._globalstep_last_logged,
        "metrics": metrics,
    }
    _file(folder, trainer.args.process_index).write_text(json.dumps(content), encoding="utf-8")


def read_counters(trainer: CheckpointedTrainer, resumed: Checkpoint) -> None:
    """Take the sums up again. In another world size each rank begins with their mean: that is what is logged."""
    index, same = trainer.args.process_index, resumed.world_size == trainer.args.world_size
    numbers = [index] if same else list(range(resumed.world_size))
    files = [file for number in numbers if (file := _file(resumed.path, number)).exists()]
    if not files:
        return
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    loss = sum(part["loss"] for part in found) / len(found)
    trainer._tr_loss += loss
    trainer._total_loss_scalar -= loss  # the mean over this attempt's own steps is logged at its end
    trainer._globalstep_last_logged = found[0]["last_logged"]
    for name, values in found[0]["metrics"].items():
        trainer._metrics["train"][name] = values


def _file(folder: Path, process_index: int) -> Path:
    return folder / f"counters_{process_index}.json"
