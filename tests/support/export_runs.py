"""What the tests of train.export share: checkpoints of tiny models, and the command in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from train import export
from train.checkpoint.folders import publish


def add_checkpoint(run_dir: Path, step: int, model_dir: Path, *, best: int | None = None) -> Path:
    """A complete checkpoint holding the model of `model_dir` shifted by `step`, so that steps can be told apart."""
    folder = run_dir / f"checkpoint-{step}"
    save_model(folder, step, model_dir)
    state = {"global_step": step, "best_model_checkpoint": f"/before/the/move/checkpoint-{best}" if best else None}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    publish(folder, step=step, world_size=1, extra={})
    return folder


def save_model(folder: Path, step: int, model_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_dir, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v + step for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def run_export(source: Path, output: Path, *options: str) -> None:
    export.main(["--checkpoint", str(source), "--output", str(output), *options])


def exported_step(output: Path) -> int:
    return json.loads((output / "export.json").read_text())["step"]
