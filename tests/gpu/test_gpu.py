"""What only a GPU can show: the kernels of each attention back end, bf16, QLoRA, 8-bit states, ZeRO-3, exact resume.

Skipped without a GPU. `python -m tests.benchmarks.bench_gpu` runs it before it measures.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from tests.conftest import ROOT
from tests.in_process import train_here, train_plainly
from tests.training import environment, history, make_shards, run_config
from train import attention, isolation, varlen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda")
HEADS = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
ON_GPU = {"use_cpu": False, "bf16": True, "num_train_epochs": 5, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module", autouse=True)
def registered():
    varlen.register()


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6]}
    return make_shards(tmp_path_factory.mktemp("gpu"), tiny_tokenizer.name_or_path, answers)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 16, 1000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_kernel_equals_each_document_alone(kv_heads, window, dtype):
    """Forward and backward, against fp32 attention of one document at a time."""
    lengths, random = [1, 40, 130, 7], torch.Generator(GPU).manual_seed(0)
    ends = torch.tensor([0, 1, 41, 171, 178], dtype=torch.int32, device=GPU)
    shapes = [(1, heads, sum(lengths), 64) for heads in (4, kv_heads, kv_heads)]
    half = [torch.randn(s, device=GPU, dtype=dtype, generator=random, requires_grad=True) for s in shapes]
    full = [tensor.detach().float().requires_grad_() for tensor in half]
    module = torch.nn.Linear(1, 1, device=GPU, dtype=dtype)
    packed = {"cu_seq_lens_q": ends, "max_length_q": max(lengths), "sliding_window": window}
    got, _ = varlen.varlen_forward(module, *half, None, **packed)
    left = -1 if window is None else window - 1
    expected = varlen._one_by_one(*full, ends.tolist(), 0.0, None, left)
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)
    weights = torch.randn(expected.shape, device=GPU, generator=random)
    (got.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    for tensor, reference in zip(half, full, strict=True):
        torch.testing.assert_close(tensor.grad.float(), reference.grad, rtol=5e-2, atol=5e-2)


def usable(model_dir) -> list[str]:
    """The attention implementations that this GPU and these packages offer for a model."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    setting = attention.Setting(
        use_cpu=False,
        half=True,
        batch_tokens=512,
        model_class=type(model),
        config=model.config,
        capability=torch.cuda.get_device_capability(),
    )
    return [name for name in attention.ISOLATING if attention.unsuited(name, setting) is None]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "mistral", "qwen3_moe", "gemma2"])
def test_every_back_end_isolates_in_bf16(architecture, tiny_model_dir, capsys):
    ids = torch.randint(4, 260, (isolation.TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    folder, found, failed = tiny_model_dir(architecture, **HEADS), {}, {}
    for name in usable(folder):
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=name, dtype=torch.bfloat16).to(GPU)
            add_fused_lm_head(model)
            found[name] = isolation.check(model, ids, GPU, torch.bfloat16)
        except Exception as error:  # one back end's failure must not hide what the others do
            failed[name] = f"{type(error).__name__}: {error}"
    with capsys.disabled():
        print(f"\n{architecture}: {found}")
    assert not failed and "eager" in found, failed


@pytest.fixture(scope="module")
def expected(shards, tiny_model_dir):
    """Losses of the plain loop: unpacked, fp32, on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama", **HEADS), dtype=torch.float32)

    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    return train_plainly(model, shards, 5, adamw).losses


def options(shards, model, **more):
    return {"data": str(shards), "model_name_or_path": str(model), "gradient_accumulation_steps": 2, **ON_GPU, **more}


MODES = {
    "auto": {},
    "compiled": {"torch_compile": True},
    "fused": {"optim": "adamw_torch_fused", "gradient_checkpointing": True},
    "offloaded_activations": {"activation_offloading": True},
    "8bit": {"optim": "adamw_8bit"},
    "paged_8bit": {"optim": "paged_adamw_8bit"},
    "liger": {"use_liger_kernel": True},
}
PACKAGES = {"8bit": "bitsandbytes", "paged_8bit": "bitsandbytes", "liger": "liger_kernel"}


@pytest.mark.parametrize("mode", MODES)
def test_bf16_training_follows_the_fp32_reference(mode, shards, expected, tiny_model_dir, tmp_path):
    if mode in PACKAGES:
        pytest.importorskip(PACKAGES[mode])
    losses = train_here(tmp_path, **options(shards, tiny_model_dir("llama", **HEADS), **MODES[mode]))
    assert [entry["loss"] for entry in losses] == pytest.approx(expected, rel=0.02)


def test_qlora_learns(shards, tiny_model_dir, tmp_path):
    pytest.importorskip("bitsandbytes")
    more = {"use_peft": True, "load_in_4bit": True, "use_bnb_nested_quant": True, "lora_target_modules": "all-linear"}
    more |= {"optim": "paged_adamw_8bit", "learning_rate": 1e-2, "num_train_epochs": 20}
    losses = train_here(tmp_path, **options(shards, tiny_model_dir("llama", **HEADS), **more))
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.3


def test_zero3_with_one_process(shards, expected, tiny_model_dir, tmp_path):
    pytest.importorskip("deepspeed")
    one = {"expected_world_size": 1, "expected_distributed_type": "DEEPSPEED", "output_dir": str(tmp_path / "run")}
    config = run_config(tmp_path / "run.yaml", **options(shards, tiny_model_dir("llama", **HEADS), **one))
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", "configs/accelerate/zero3.yaml"]
    command += ["--num_processes", "1", "--main_process_port", "0", "-m", "train.sft", "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    losses = [entry["loss"] for entry in history(tmp_path / "run") if "loss" in entry]
    assert losses == pytest.approx(expected, rel=0.03)


def test_a_resumed_run_equals_an_uninterrupted_one(shards, tiny_model_dir, tmp_path):
    more = {"attn_implementation": "sdpa", "full_determinism": True, "save_strategy": "steps", "save_steps": 2}
    base = options(shards, tiny_model_dir("llama", **HEADS), **more)
    whole = train_here(tmp_path / "whole", **base)
    resumed = train_here(tmp_path / "resumed", **base, resume=str(tmp_path / "whole" / "run" / "checkpoint-2"))
    assert [entry["loss"] for entry in resumed] == [entry["loss"] for entry in whole]
    assert [entry["grad_norm"] for entry in resumed] == [entry["grad_norm"] for entry in whole]
