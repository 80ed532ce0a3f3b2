"""Disk space that a run needs at least: checkpoints that are kept, and the final model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from train.checks.run_schedule import Schedule
from train.config.run_config import RunConfig
from train.run.model_identity import model_folder, read_header, weight_files

_FLOATS = {"F64", "F32", "F16", "BF16"}
_WHOLE = ("float32", "auto", None)  # dtypes of the weights with four bytes, or perhaps


@dataclass(frozen=True, kw_only=True)
class Space:
    """Bytes that a run needs in its output_dir."""

    checkpoint: int  # of each, at least: the weights, and two states of each
    number: int  # checkpoints that lie there at once
    final: int

    @property
    def whole(self) -> int:
        """Of all together."""
        return self.number * self.checkpoint + self.final


def needed_space(config: RunConfig, schedule: Schedule) -> Space | None:
    """What full fine-tuning needs at least; None for adapters, which are small, and where the weights are not here."""
    weights = None if config.value("use_peft") else count_weights(config)
    if not weights:
        return None
    per_weight = 4 if config.value("dtype") in _WHOLE else 2
    per_state = 1 if "8bit" in config.optim else 4
    return Space(
        checkpoint=weights * (per_weight + 2 * per_state),
        number=_at_once(config, schedule.num_checkpoints),
        final=weights * per_weight,
    )


def _at_once(config: RunConfig, written: int) -> int:
    """Checkpoints that lie there at once: the next one is complete before an old one is deleted."""
    limit = config.value("save_total_limit")
    if limit is None:
        return written
    kept = max(limit, 2) if config.value("load_best_model_at_end") else limit
    return min(written, kept + 1)


def count_weights(config: RunConfig) -> int | None:
    """Numbers in the model's safetensors files, by their headers; None where they are not here, or cannot be read."""
    folder = model_folder(str(config.value("model_name_or_path")), config.value("model_revision"))
    try:
        files = (weight_files(folder) if folder else None) or []
        headers = [read_header(file)[0] for file in files]
        tensors = [tensor for header in headers for tensor in header.values()]
        return sum(math.prod(tensor["shape"]) for tensor in tensors if tensor["dtype"] in _FLOATS) if files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a damaged file is reported by whoever loads it


def check_space(config: RunConfig, space: Space) -> Iterator[str]:
    """Refuse a run whose checkpoints would not fit where they go."""
    run_dir = Path(config.sft["output_dir"])
    free = free_bytes(run_dir)
    if space.whole > free:
        free += own_bytes(run_dir)  # looked through only now: every process comes here, on a network file system
    if space.whole <= free:
        return
    fits = (free - space.final) // space.checkpoint - 1
    fewer = f"write save_total_limit: {fits}" if fits >= 1 else "choose another output_dir"
    yield (
        f"output_dir: {run_dir} has {free / 2**30:,.1f} GiB free, the run needs at least {describe(space)}: "
        f"make space, or {fewer}"
    )


def free_bytes(run_dir: Path) -> int:
    """Free on the disk of a run directory that may not be there yet."""
    existing = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


def own_bytes(run_dir: Path) -> int:
    """What the run directory's own checkpoints hold already: they are part of what the run needs."""
    return sum(file.stat().st_size for file in run_dir.glob("checkpoint-*/**/*") if file.is_file())


def describe(space: Space) -> str:
    """In numbers for a person."""
    parts = f"{space.number} checkpoint(s) of {_size(space.checkpoint)} at once, the final model {_size(space.final)}"
    return f"{_size(space.whole)} ({parts})"


def _size(number: float) -> str:
    """Bytes in GiB, or in MiB where that would be 0.0."""
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 / 20 else f"{number / 2**20:,.1f} MiB"
