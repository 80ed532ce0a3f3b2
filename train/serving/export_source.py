"""What is exported: the checkpoint or final model of a run, and the shards that it was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import TOKENIZER_DIR, check_tokenizer, manifest_sha256, read_manifest
from train.checkpoint.folders import MARKER, Checkpoint, is_checkpoint_name, newest_complete, read, verify
from train.checkpoint.shard_files import OPTIMIZER

if TYPE_CHECKING:
    from data_prep.shards import Manifest


@dataclass(frozen=True)
class Exported:
    """The checkpoint or final model that is exported, and its run."""

    checkpoint: Checkpoint
    run_dir: Path
    run: dict[str, Any]  # run.json, empty when there is none

    @property
    def name(self) -> str:
        """`final`, or the checkpoint's name."""
        return "final" if self.checkpoint.path == self.run_dir else self.checkpoint.path.name

    @property
    def base_digests(self) -> dict[str, str] | None:
        """Of the model that the run began from, if they were recorded."""
        return self.checkpoint.extra.get("base_model") or self.run.get("base_model")


@dataclass(frozen=True)
class Shards:
    """The shards that a run was trained on."""

    path: Path
    manifest: Manifest
    tokenizer: Path  # its folder
    end_token_ids: list[int]


def find_exported(path: Path, *, best: bool) -> Exported:
    """What `path` stands for: a checkpoint itself, or of a run the final model, its best or its newest checkpoint.

    Raises:
        ValueError: no such folder, nothing complete in it, or no best one known.
    """
    path = path.resolve()
    if not path.is_dir():
        raise ValueError(f"--checkpoint {path}: expected a run directory or a checkpoint, found no such folder")
    if is_checkpoint_name(path.name):
        if best:
            raise ValueError(f"--best chooses within a run directory; {path} is one checkpoint: give {path.parent}")
        return Exported(read(path), path.parent, read_json(path.parent / "run.json"))
    chosen = _best(path) if best else _final_or_newest(path)
    return Exported(chosen, path, read_json(path / "run.json"))


def find_shards(exported: Exported, data: str | None) -> tuple[Shards | None, str | None]:
    """The shards that the run was trained on, or why they cannot be read.

    Raises:
        ValueError: `data` is given, and is not them.
    """
    path = data or exported.run.get("data")
    trained_on = exported.run.get("manifest_sha256") or exported.checkpoint.extra.get("manifest_sha256")
    try:
        if not path:
            raise ValueError(f"{exported.run_dir} has no run.json that names the shards")
        manifest: Manifest = read_manifest(path)
        found = manifest_sha256(path)
        if trained_on and found != trained_on:
            raise ValueError(f"{path} is other data than the run's (manifest {found[:12]}, run {trained_on[:12]})")
        if damaged := check_tokenizer(path, manifest):
            raise ValueError("; ".join(damaged))
    except ValueError as error:
        if data:
            raise
        print(f"{error}: taking the checkpoint's copy of the tokenizer")
        return None, str(error)
    return Shards(Path(path), manifest, Path(path) / TOKENIZER_DIR, manifest["end_token_ids"]), None


def check_bytes(checkpoint: Checkpoint) -> None:
    """Compare what is read of a checkpoint with its digests: optimizer states alone are left out where they can be."""
    whole = any(name.endswith(".safetensors") for name in checkpoint.files)
    states = f"{OPTIMIZER}/"
    read_here = {n: r for n, r in checkpoint.files.items() if not (whole and "/" in n) and not n.startswith(states)}
    kept = {name: record for name, record in read_here.items() if not name.endswith(".pt") or not whole}
    if damaged := list(verify(replace(checkpoint, files=kept))):
        raise ValueError(f"{'; '.join(damaged)}: export another checkpoint")


def _final_or_newest(run_dir: Path) -> Checkpoint:
    final = read(run_dir) if (run_dir / MARKER).exists() else None
    newest = newest_complete(run_dir, print)
    # A run that went on after its end has checkpoints newer than the final model it once wrote.
    if final and (newest is None or final.step >= newest.step):
        return final
    if newest:
        print(f"{run_dir} has no final model yet: taking its newest complete checkpoint")
        return newest
    raise ValueError(f"{run_dir}: expected a final model or a complete checkpoint-N, found neither: train first")


def _best(run_dir: Path) -> Checkpoint:
    newest = newest_complete(run_dir, print)
    state = read_json(newest.path / "trainer_state.json") if newest else {}
    best = state.get("best_model_checkpoint")
    if not best:
        raise ValueError(
            f"{run_dir}: no best checkpoint is recorded: that needs eval_strategy, metric_for_best_model and a "
            "checkpoint saved after an evaluation. Leave --best out to export the final or newest one"
        )
    return read(run_dir / Path(best).name)  # by name: the run may have been moved


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none.

    Raises:
        ValueError: it holds no JSON.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, found something else ({error})") from None
    return content if isinstance(content, dict) else {}
