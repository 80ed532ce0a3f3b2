"""What a start would find in its run directory: where it goes on, or why it would be refused; for `train.preflight`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from train.checkpoint.finished import finished_step
from train.checkpoint.resume import check_start, identity
from train.checkpoint.world_size import candidate, keep_global_batch
from train.config.run_config import RunConfig
from train.config.steps import rows_per_step, steps_in_all, steps_per_epoch
from train.run.run_record import base_model_of, check_shards, read_record


def what_a_start_does(
    config: RunConfig, manifest: Mapping[str, Any], world_size: int | None, deepspeed: dict[str, Any] | None
) -> list[str]:
    """Lines on the run that output_dir holds; empty if it holds none. Nothing is written.

    Args:
        manifest: that of the shards.
        world_size: None where it is not known: that of the last start.
        deepspeed: the DeepSpeed file's content; None without DeepSpeed.

    Raises:
        ValueError: training would refuse to go on here: other shards, other options of a finished run, another batch.
    """
    run_dir = Path(config.sft["output_dir"])
    if not (earlier := read_record(run_dir)):
        return []
    sha256 = check_shards(run_dir, earlier, config.own.data)
    processes = world_size or earlier.get("world_size") or 1
    config, note = keep_global_batch(config, run_dir, processes)
    here = {**identity(config, _arguments(config, manifest, deepspeed)), "manifest_sha256": sha256}
    check_start(config, run_dir, {**here, "base_model": base_model_of(config)})
    done = _finished(config, run_dir, manifest, processes)
    if done is not None:
        return [f"finished before, after {done} steps: a start trains nothing; give more num_train_epochs or max_steps"]
    found = candidate(config, run_dir)
    return [f"goes on from {found.path.name} of {run_dir}", *([note] if note else [])] if found else []


def _arguments(config: RunConfig, manifest: Mapping[str, Any], deepspeed: dict[str, Any] | None) -> Any:
    """What `identity` reads of the training arguments, which cannot be made without joining a world."""
    in_order = manifest.get("recipe", {}).get("order") == "curriculum"
    return SimpleNamespace(
        seed=config.value("seed"),
        data_seed=config.value("data_seed"),
        train_sampling_strategy="sequential" if in_order else config.value("train_sampling_strategy"),
        deepspeed_plugin=SimpleNamespace(deepspeed_config=deepspeed) if deepspeed else None,
    )


def _finished(config: RunConfig, run_dir: Path, manifest: Mapping[str, Any], processes: int) -> int | None:
    batch, accumulation = config.value("per_device_train_batch_size"), config.value("gradient_accumulation_steps")
    rows = rows_per_step(processes, batch, accumulation, config.own.sequence_parallel)
    an_epoch = steps_per_epoch(manifest["splits"]["train"]["rows"], max(rows, 1))
    total = steps_in_all(an_epoch, config.value("max_steps"), config.value("num_train_epochs"))
    return finished_step(config, run_dir, rows, total)
