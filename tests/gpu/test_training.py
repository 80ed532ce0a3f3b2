"""Training on a GPU: bf16, compiled, optimizers, QLoRA, Liger's kernels, ZeRO-3 with one process, exact resume."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import ROOT
from tests.gpu.conftest import HEADS
from tests.support.in_process import train_here, train_plainly
from tests.support.training import environment, history, kill, make_shards, run_config


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6]}
    return make_shards(tmp_path_factory.mktemp("gpu"), tiny_tokenizer.name_or_path, answers)


@pytest.fixture(scope="module")
def expected(shards, tiny_model_dir):
    """Losses of the plain loop: unpacked, fp32, on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", **HEADS), dtype=torch.float32)

    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    return train_plainly(model, shards, 5, adamw).losses


@pytest.fixture
def options(shards, tiny_model_dir, device):
    """Of a run in bf16 on the device."""
    base = {"use_cpu": device.type == "cpu", "bf16": True, "num_train_epochs": 5, "per_device_train_batch_size": 2}
    model = str(tiny_model_dir("llama", **HEADS))
    return {**base, "data": str(shards), "model_name_or_path": model, "gradient_accumulation_steps": 2}


MODES = {
    "auto": {},
    "compiled": {"torch_compile": True},
    "copies": {"bf16_copies": True, "keep_logits_gib": 1.0, "torch_compile": True},
    "fused": {"optim": "adamw_torch_fused", "gradient_checkpointing": True},
    "offloaded_activations": {"activation_offloading": True},
    "8bit": {"optim": "adamw_8bit"},
    "paged_8bit": {"optim": "paged_adamw_8bit"},
}
PACKAGES = {"8bit": "bitsandbytes", "paged_8bit": "bitsandbytes"}


@pytest.mark.parametrize("mode", MODES)
def test_bf16_training_follows_the_fp32_reference(mode, options, expected, tmp_path, device, kernel_used):
    if mode in PACKAGES:
        pytest.importorskip(PACKAGES[mode])
    changed = dict(MODES[mode])
    if device.type == "cpu" and changed.get("torch_compile"):
        changed["torch_compile_backend"] = "aot_eager"  # traced and differentiated; generating code takes minutes
    if device.type == "cpu" and mode == "offloaded_activations":
        changed = {}  # copies by streams, which only a GPU has
    losses = train_here(tmp_path, **{**options, **changed})
    assert [entry["loss"] for entry in losses] == pytest.approx(expected, rel=0.02)


def test_qlora_learns(options, tmp_path, kernel_used):
    pytest.importorskip("bitsandbytes")
    more = {"use_peft": True, "load_in_4bit": True, "use_bnb_nested_quant": True, "lora_target_modules": "all-linear"}
    more |= {"optim": "paged_adamw_8bit", "learning_rate": 1e-2, "num_train_epochs": 8}
    losses = train_here(tmp_path, **{**options, **more})
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.3


def run_apart(launcher: list, folder: Path, kind: str, **options) -> list[float]:
    """Losses of train.sft in a process of its own, one process in its world."""
    one = {"expected_world_size": 1, "expected_distributed_type": kind, "output_dir": str(folder / "run")}
    config = run_config(folder / "run.yaml", **{**options, **one})
    module = ["tests.gpu.stand_in", "train.sft"] if options["use_cpu"] else ["train.sft"]
    command = [sys.executable, *launcher, "-m", *module, "--config", str(config)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        code = process.wait(600)
    finally:
        kill(process)  # its children, too: what a time limit leaves behind would keep the GPU
    assert code == 0, (folder / "log").read_text()[-6000:]
    return [entry["loss"] for entry in history(folder / "run") if "loss" in entry]


def test_liger_kernels(options, expected, tmp_path):
    """Apart: it replaces functions of transformers for good, so every later run of this process would have them."""
    pytest.importorskip("liger_kernel")
    losses = run_apart([], tmp_path, "NO", **options, use_liger_kernel=True)
    assert losses == pytest.approx(expected, rel=0.02)


def test_zero3_with_one_process(options, expected, tmp_path):
    pytest.importorskip("deepspeed")
    file = "configs/accelerate/cpu_zero3.yaml" if options["use_cpu"] else "configs/accelerate/zero3.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "1"]
    losses = run_apart([*launcher, "--main_process_port", "0"], tmp_path, "DEEPSPEED", **options)
    assert losses == pytest.approx(expected, rel=0.03)


def test_fsdp2_with_one_process(options, expected, tmp_path):
    """Saved as shards in the background, and resumed from them."""
    if options["use_cpu"]:
        pytest.skip("accelerate runs plain data parallelism instead of FSDP on a CPU")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/fsdp2.yaml"]
    launcher += ["--num_processes", "1", "--main_process_port", "0"]
    more = {**options, "save_strategy": "steps", "save_steps": 2}
    losses = run_apart(launcher, tmp_path, "FSDP", **more)
    assert losses == pytest.approx(expected, rel=0.03)
    (tmp_path / "resumed").mkdir()
    saved = str(tmp_path / "run" / "checkpoint-2")
    resumed = run_apart(launcher, tmp_path / "resumed", "FSDP", **more, resume=saved)
    assert resumed == pytest.approx(expected, rel=0.03)


def test_a_resumed_run_equals_an_uninterrupted_one(options, tmp_path):
    more = {"attn_implementation": "sdpa", "full_determinism": True, "save_strategy": "steps", "save_steps": 2}
    base = {**options, **more}
    whole = train_here(tmp_path / "whole", **base)
    resumed = train_here(tmp_path / "resumed", **base, resume=str(tmp_path / "whole" / "run" / "checkpoint-2"))
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in whole]
    assert [entry["grad_norm"] for entry in resumed] == [entry["grad_norm"] for entry in whole]
