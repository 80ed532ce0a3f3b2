"""run.json: what a run was made from, and the W&B id that every resume uses again. No secrets, no environment."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

from data_prep.shards import manifest_sha256
from train.checkpoint import write_json_atomically

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
        raise ValueError(f"{path}: not readable as JSON ({error}): delete it to start the record anew") from None


def make_record(run_dir: Path, config: Any, world_size: int) -> dict[str, Any]:
    """The record of this start; an earlier start's W&B id is kept.

    Raises:
        ValueError: the run directory belongs to a run on other data.
    """
    earlier = read_record(run_dir) or {}
    record = {
        "data": str(config.own.data),
        "manifest_sha256": manifest_sha256(config.own.data),
        "model_name_or_path": config.model.get("model_name_or_path"),
        "options": {**config.sft, **config.model},
        "world_size": world_size,
        "git_commit": git_commit(),
        "baseline": earlier.get("baseline"),
        "branch": earlier.get("branch"),
        "wandb_run_id": os.environ.get("WANDB_RUN_ID") or earlier.get("wandb_run_id") or secrets.token_hex(4),
    }
    if earlier and earlier.get("manifest_sha256") != record["manifest_sha256"]:
        raise ValueError(
            f"{run_dir} holds a run on other shards (manifest {earlier.get('manifest_sha256', '')[:12]}, now "
            f"{record['manifest_sha256'][:12]}): a resume would train some documents twice and others never. Choose "
            "another output_dir, or give the shards that the run began with"
        )
    return record


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write run.json atomically; the values of options whose name speaks of a token are left out."""
    options = {k: v for k, v in record["options"].items() if not k.endswith("token")}
    write_json_atomically(run_dir / FILE, {**record, "options": options})


def keep_baseline(run_dir: Path, baseline: dict[str, float]) -> None:
    """Add the base model's evaluation losses, which those of later steps are compared with."""
    record = read_record(run_dir) or {}
    write_json_atomically(run_dir / FILE, {**record, "baseline": baseline})


def use_wandb_id(record: dict[str, Any], run_dir: Path) -> None:
    """Make W&B continue the same run after each resume, and keep its files with the run."""
    os.environ.setdefault("WANDB_RUN_ID", record["wandb_run_id"])
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_PROJECT", "packhaul")
    os.environ.setdefault("WANDB_DIR", str(run_dir))


def lock(run_dir: Path) -> Any:
    """Hold the run directory as long as the returned file is open; the system lets go when the process ends.

    Raises:
        ValueError: another job holds it, such as processes that outlived their killed launcher.
    """
    file = (run_dir / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return file  # a file system without locks: go on, as without this check
        file.seek(0)
        raise ValueError(
            f"{run_dir} is in use by another job ({file.read().strip() or 'unknown'}): two jobs would destroy each "
            "other's checkpoints. Stop that one, or choose another output_dir"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


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
