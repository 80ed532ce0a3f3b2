"""Checkpoint folders made without training, and which are there."""

from __future__ import annotations

from pathlib import Path

from train.checkpoint.folders import publish


def save(run_dir: Path, step: int, complete: bool = True) -> Path:
    """A checkpoint with a file in the folder and two below it."""
    folder = run_dir / f"checkpoint-{step}"
    (folder / f"global_step{step}").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * (1000 + step))
    for rank in range(2):
        (folder / f"global_step{step}" / f"rank_{rank}.pt").write_bytes(b"o" * 500)
    if complete:
        publish(folder, step=step, world_size=2, extra={"manifest_sha256": "abc"})
    return folder


def steps(run_dir: Path) -> list[int]:
    """The steps of the folders that are there, complete or not."""
    return sorted(int(p.name.split("-")[1]) for p in run_dir.glob("checkpoint-*"))
