"""run.json: what a run was made from, and the W&B id that every resume uses again. No secrets, no environment."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

from data_prep.shards import manifest_sha256
from train.run.atomic_files import write_json_atomically
from train.run.model_identity import difference, model_digests

log = logging.getLogger(__name__)

FILE = "run.json"


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """The record of an earlier start, or None.

    Raises:
        ValueError: it is there but cannot be read.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}): delete it to start a new record") from None


def make_record(run_dir: Path, config: Any, world_size: int) -> dict[str, Any]:
    """The record of this start; an earlier start's W&B id is kept, and its baseline unless the base model is another.

    Raises:
        ValueError: the run directory belongs to a run on other data.
    """
    earlier = read_record(run_dir) or {}
    sha256 = check_shards(run_dir, earlier, config.own.data)
    base_model = base_model_of(config)
    same_base = difference(earlier.get("base_model"), base_model) is None
    return {
        "data": str(config.own.data),
        "manifest_sha256": sha256,
        "model_name_or_path": config.model.get("model_name_or_path"),
        "base_model": base_model,
        "options": {**config.sft, **config.model},
        "own_options": _own_options(config.own),
        "world_size": world_size,
        "git_commit": git_commit(),
        "baseline": earlier.get("baseline") if same_base else None,
        "branch": earlier.get("branch"),
        "saved_step": earlier.get("saved_step"),
        "measured": earlier.get("measured"),
        "wandb_run_id": os.environ.get("WANDB_RUN_ID") or earlier.get("wandb_run_id") or secrets.token_hex(4),
    }


def check_shards(run_dir: Path, earlier: dict[str, Any], data: str | Path) -> str:
    """The manifest's hash of the shards, which are those that the run began with.

    Args:
        earlier: what run.json holds; empty where there is none.

    Raises:
        ValueError: the run directory belongs to a run on other data.
    """
    now = manifest_sha256(data)
    if earlier and earlier.get("manifest_sha256") != now:
        before, then = earlier.get("manifest_sha256") or "", earlier.get("data") or "OLD"
        raise ValueError(
            f"{run_dir} holds a run on other shards (manifest {before[:12]}, now {now[:12]}): "
            "a resume would train some documents twice and others never. Choose another output_dir, or give the shards "
            f"that the run began with, {then}; `packhaul diff {then} {data}` says what differs"
        )
    return now


def _own_options(own: Any) -> dict[str, Any]:
    """Those of our own options that are not their defaults."""
    values = {field.name: (getattr(own, field.name), field.default) for field in dataclasses.fields(own)}
    return {name: value for name, (value, default) in values.items() if value != default}


def beginning(run_dir: Path) -> dict[str, Any]:
    """What stays as it was at the first start of a run that goes on: its base model, and that one's losses."""
    earlier = read_record(run_dir) or {}
    return {name: earlier[name] for name in ("base_model", "baseline") if earlier.get(name)}


def order(identity: dict[str, Any], rows_per_step: int, total_steps: int) -> dict[str, Any]:
    """What decides, with the shards, which documents a step trains: `train.trace` reads it.

    Args:
        identity: of train.checkpoint.resume.
    """
    same = {name: identity[name] for name in ("data_seed", "row_order")}
    return {"order": {**same, "rows_per_step": rows_per_step, "total_steps": total_steps}}


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write run.json atomically; the values of options whose name speaks of a token are left out."""
    options = {k: v for k, v in record["options"].items() if not k.endswith("token")}
    write_json_atomically(run_dir / FILE, {**record, "options": options})


def keep_baseline(run_dir: Path, baseline: dict[str, float]) -> None:
    """Add the base model's evaluation losses, which those of later steps are compared with."""
    record = read_record(run_dir) or {}
    write_json_atomically(run_dir / FILE, {**record, "baseline": baseline})


def keep_base_model(run_dir: Path, digests: dict[str, str] | None) -> None:
    """Add the base model's digests, where they are known only once it is loaded."""
    write_json_atomically(run_dir / FILE, {**(read_record(run_dir) or {}), "base_model": digests})


def keep_saved_step(run_dir: Path, step: int) -> None:
    """Add the last step whose state was saved, which is known then even when the checkpoint is lost."""
    try:
        if record := read_record(run_dir):
            write_json_atomically(run_dir / FILE, {**record, "saved_step": step})
    except (OSError, ValueError) as error:
        log.warning(f"{FILE} does not say that step {step} was saved: {error}")


def keep_measured(run_dir: Path, found: dict[str, Any]) -> None:
    """Add what the run has measured: device, throughput, and its peak of memory next to the estimate."""
    write_json_atomically(run_dir / FILE, {**(read_record(run_dir) or {}), "measured": found})


def base_model_of(config: Any) -> dict[str, str] | None:
    """The digests of the base model (train.run.model_identity), if it is on this machine."""
    model = config.model.get("model_name_or_path")
    return model_digests(str(model), config.model.get("model_revision")) if model else None


def use_wandb_id(record: dict[str, Any], run_dir: Path) -> None:
    """Make W&B continue the same run after each resume, and keep its files with the run."""
    os.environ.setdefault("WANDB_RUN_ID", record["wandb_run_id"])
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_PROJECT", "packhaul")
    os.environ.setdefault("WANDB_DIR", str(run_dir))


def git_commit() -> str | None:
    """The code's commit, "-dirty" behind it when files differ; None outside a repository."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("-dirty" if status.stdout.strip() else "")
