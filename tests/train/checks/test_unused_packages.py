"""What a run does not use is not imported, and what it uses is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.references import LORA, NF4
from tests.support.training import environment, history, make_shards, run_config
from train.checks.unused_packages import unused
from train.config.run_config import load_run_config

ALL = {"peft", "bitsandbytes", "deepspeed", "wandb"}


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        ([], set()),
        (["--use_peft", "--lora_target_modules", "q_proj"], {"peft"}),
        (["--use_peft", "--load_in_4bit"], {"peft", "bitsandbytes"}),
        (["--optim", "paged_adamw_8bit"], {"bitsandbytes"}),
        (["--optim", "adamw_torch_8bit"], set()),
        (["--report_to", "wandb"], {"wandb"}),
        (["--report_to", "tensorboard", "wandb"], {"wandb"}),
        (["--report_to", "all"], {"wandb"}),
        (["--trust_remote_code"], ALL),
    ],
)
def test_unused(flags, used, tiny_model_dir):
    base = ["--data", "shards", "--output_dir", "run", "--model_name_or_path", str(tiny_model_dir("llama"))]
    assert set(unused(load_run_config([*base, *flags]))) == ALL - used


def test_a_model_that_is_quantised_already_or_not_here(tmp_path):
    flags = ["--data", "shards", "--output_dir", "run", "--model_name_or_path"]
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    assert "bitsandbytes" not in set(unused(load_run_config([*flags, str(tmp_path)])))
    assert "bitsandbytes" not in set(unused(load_run_config([*flags, "nobody/nothing"])))


def test_under_deepspeed(tiny_model_dir, monkeypatch):
    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("ACCELERATE_USE_DEEPSPEED", "true")):
        monkeypatch.setenv(name, value)
    flags = ["--data", "shards", "--output_dir", "run", "--model_name_or_path", str(tiny_model_dir("llama"))]
    assert "deepspeed" not in set(unused(load_run_config(flags)))


@pytest.mark.parametrize("options", [{}, {**LORA, **NF4, "optim": "paged_adamw_8bit"}], ids=["plain", "qlora"])
def test_a_process_of_its_own(options, tiny_tokenizer, tiny_model_dir, tmp_path):
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"short": [1] * 4})
    one = {"max_steps": 1, "expected_world_size": 1, "expected_distributed_type": "NO", "disable_tqdm": True}
    names = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama"))}
    config = run_config(tmp_path / "run.yaml", output_dir=str(tmp_path / "run"), **{**names, **one, **options})
    code = f"""
import gc, sys
from train.sft import main
assert main(["--config", {str(config)!r}], own_process=True) == 0
found = {{name for name in {ALL} if sys.modules.get(name)}}
assert found == { ({"peft", "bitsandbytes"} if options else set()) }, found
assert gc.isenabled() and gc.get_freeze_count()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("loss" in entry for entry in history(tmp_path / "run"))
