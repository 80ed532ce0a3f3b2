"""The throughput of one GPU that an earlier run measured: of the run that is named, or of one next to this one."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.run_config import RunConfig

RECORD = "run.json"  # as train.run.run_record writes it, with what train.memory.after_run adds
_RATE = "tokens_per_second_per_gpu"
# Options that decide what a token costs; a run that differs in one is not taken unasked.
_DECIDING = ("use_peft", "load_in_4bit", "load_in_8bit", "gradient_checkpointing", "torch_compile", "bf16", "fp16")


@dataclass(frozen=True)
class Speed:
    """Real tokens a second of one GPU."""

    tokens_per_second: float
    source: str  # for people


def run_folder(text: str) -> Path:
    """A flag's value: the output_dir of a run.

    Raises:
        argparse.ArgumentTypeError: no run began there.
    """
    if not (Path(text) / RECORD).is_file():
        raise argparse.ArgumentTypeError(f"expected the output_dir of a run, with its {RECORD}, found {text!r}")
    return Path(text)


def speed_of(folder: Path) -> Speed | None:
    """What this run measured; None if it has logged no throughput.

    Raises:
        ValueError: its files cannot be read.
    """
    record = _read(folder / RECORD)
    found = record.get("measured") or {}
    rate = found.get(_RATE) or _logged(folder)
    if not rate:
        return None
    device = found.get("device", "device not recorded")
    text = f"measured by {folder}: {record.get('model_name_or_path')}, {device}, {record.get('world_size')} process(es)"
    return Speed(rate, text)


def speed_nearby(config: RunConfig, device: str | None) -> Speed | None:
    """Of the newest finished run next to this one's output_dir, of the same model, options and device.

    Args:
        device: name of the GPU, or a part of its words, such as H100; None takes any.
    """
    folder = Path(config.sft["output_dir"]).absolute().parent
    files = [file for file in folder.glob(f"*/{RECORD}") if _is_alike(_read_or_none(file), config, device)]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return speed_of(newest.parent) if newest else None


def _is_alike(record: Mapping[str, Any], config: RunConfig, device: str | None) -> bool:
    measured = record.get("measured") or {}
    options, own = record.get("options") or {}, {**config.sft, **config.model}
    is_there = _is_named(device, measured.get("device", ""))
    same_model = record.get("model_name_or_path") == own.get("model_name_or_path")
    return (
        bool(measured.get(_RATE)) and is_there and same_model and all(options.get(n) == own.get(n) for n in _DECIDING)
    )


def _is_named(device: str | None, found: str) -> bool:
    """By words, as H20 is not H200."""
    return device is None or set(device.casefold().split()) <= set(found.casefold().split())


def _logged(folder: Path) -> float | None:
    """The median of what a run logged that has not ended, by its newest checkpoint."""
    from train.run_report.run_files import read_run

    rates = [rate for _, rate in read_run(folder).series(_RATE)]
    return statistics.median(rates) if rates else None


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not readable as JSON ({error})") from None
    return found


def _read_or_none(file: Path) -> dict[str, Any]:
    """Another run's record that is damaged is none."""
    try:
        return _read(file)
    except ValueError:
        return {}
