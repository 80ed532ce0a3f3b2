"""A sound run on the CPU for the checks before a start: shards, model, launch files and flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.preflight_files import write_model, write_shards
from tests.support.preflight_runs import CPU


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "shards")


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def flags(shards, model, tmp_path):
    """The flags of a sound run on the CPU."""
    return ["--data", str(shards), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "run"), *CPU]


@pytest.fixture
def deepspeed_file(tmp_path):
    """Write a DeepSpeed JSON: sound, but for the keys given (None removes one)."""

    def write(**changes: Any) -> Path:
        auto = (
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "train_batch_size",
            "gradient_clipping",
        )
        settings = {"zero_optimization": {"stage": 2}, **dict.fromkeys(auto, "auto"), **changes}
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        return path

    return write


@pytest.fixture
def launch_file(tmp_path, deepspeed_file):
    """Write an accelerate YAML: DeepSpeed on two CPU processes, but for the keys given (None removes one)."""

    def write(deepspeed: dict[str, Any] | None = None, **changes: Any) -> Path:
        json_file = tmp_path / "deepspeed.json"
        section = {"deepspeed_config_file": str(json_file if json_file.exists() else deepspeed_file())}
        settings = {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {**section, **(deepspeed or {})},
            "num_processes": 2,
            "use_cpu": True,
            **changes,
        }
        path = tmp_path / "accelerate.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
        return path

    return write


@pytest.fixture(scope="session")
def taught(tiny_model_dir, tiny_tokenizer, tmp_path_factory) -> Path:
    """The export of a tiny model that has learnt LESSONS by heart; next to it is the run that it is of."""
    from tests.support.taught_model import teach

    return teach(tiny_model_dir("llama"), tiny_tokenizer, tmp_path_factory.mktemp("taught"))
