"""What tests of expert parallelism train: launch files with the section, and a model with answers of two lengths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.conftest import ROOT
from tests.support.references import load

# With the grouped products that the shipped files do not use.
SECTION = {"enabled": True, "autoep_size": 2, "use_grouped_mm": True}


def write_launch(folder: Path, base: str, **changes: Any) -> str:
    """A shipped launch file with the section, changed; its name, for a world."""
    launch = yaml.safe_load((ROOT / f"configs/accelerate/{base}.yaml").read_text())
    settings = json.loads((ROOT / launch["deepspeed_config"]["deepspeed_config_file"]).read_text())
    launch["deepspeed_config"]["deepspeed_config_file"] = str(folder / f"{base}.json")
    (folder / f"{base}.json").write_text(json.dumps({**settings, "expert_parallel": {**SECTION, **changes}}))
    (folder / f"{base}.yaml").write_text(yaml.safe_dump(launch))
    return str(folder / base)


def end_at_once_after(model_dir: Path, folder: Path, prompts: list[list[int]], end: int) -> Path:
    """A copy of the model whose greedy answer to the last of the prompts is the end alone, and not to the others."""
    shutil.copytree(model_dir, folder)
    model = load(folder)
    with torch.no_grad():
        states = [model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in prompts]
        apart = states[-1] - torch.stack(states[:-1]).mean(0)
        model.lm_head.weight[end] = apart * 10 / apart.norm()
    model.save_pretrained(folder)
    return folder
