"""The throughput of one GPU that an earlier run measured: of the run that is named, or of one next to this one."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.own_options import OwnOptions
from train.config.run_config import RunConfig
from train.memory.setting import Setting, Sharding

RECORD = "run.json"  # as train.run.run_record writes it, with what train.memory.after_run adds
_RATE = "tokens_per_second_per_gpu"
# What decides what a token costs, by their values, given or not; a run that differs in one is not taken unasked. Batch
# and accumulation: how much work there is for each kernel, and for each exchange and optimizer step.
_ADAPTERS = ("use_peft", "lora_r", "lora_target_modules", "lora_target_parameters", "lora_modules_to_save", "use_dora")
_WEIGHTS = ("dtype", "load_in_4bit", "load_in_8bit", "bf16", "fp16", "tf32", "optim")
_COMPUTE = ("attn_implementation", "use_liger_kernel", "torch_compile", "torch_compile_backend", "torch_compile_mode")
_MEMORY = ("gradient_checkpointing", "activation_offloading")
_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
_DECIDING = ("model_name_or_path", *_ADAPTERS, *_WEIGHTS, *_COMPUTE, *_MEMORY, *_STEP)
_DECIDING_OWN = ("bf16_copies", "keep_logits_gib", "sequence_parallel")


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


def speed_nearby(config: RunConfig, setting: Setting, device: str | None) -> Speed | None:
    """Of the newest finished run next to this one's output_dir, of the same model, options, processes and device.

    Args:
        setting: of this run.
        device: name of the GPU, or a part of its words, such as H100; None takes any.
    """
    here = {**_deciding(config), **conditions(setting.sharding, setting.seq_len)}
    folder = Path(config.sft["output_dir"]).absolute().parent
    files = [file for file in folder.glob(f"*/{RECORD}") if _is_alike(_read_or_none(file), here, device)]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return speed_of(newest.parent) if newest else None


def conditions(sharding: Sharding, seq_len: int) -> dict[str, Any]:
    """What decides what a token costs, besides options: kept in run.json next to the throughput."""
    return {"sharding": str(sharding), "processes": sharding.processes, "seq_len": seq_len}


def _is_alike(record: Mapping[str, Any], here: Mapping[str, Any], device: str | None) -> bool:
    measured = record.get("measured") or {}
    if not measured.get(_RATE) or not _is_named(device, measured.get("device", "")):
        return False
    there = {**measured, **_deciding(_config_of(record))}
    return all(there.get(name) == value for name, value in here.items())


def _deciding(config: RunConfig) -> dict[str, Any]:
    own = {name: getattr(config.own, name) for name in _DECIDING_OWN}
    return {**own, **{name: config.value(name) for name in _DECIDING}, "optim": config.optim}


def _config_of(record: Mapping[str, Any]) -> RunConfig:
    """Its options; those of ours that are not looked at are left at their defaults."""
    recorded = record.get("own_options") or {}
    own = OwnOptions(**{name: recorded[name] for name in _DECIDING_OWN if name in recorded})
    return RunConfig(own=own, sft=record.get("options") or {}, model={})


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
