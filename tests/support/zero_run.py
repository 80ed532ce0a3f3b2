"""In worlds of test_export_weights.py: two steps of plain Trainer, one checkpoint, one final save.

`RUN_DIR/reference.safetensors` holds the trained parameters as the engine itself gathers them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import deepspeed
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from train.checkpoint.folders import publish


def main(words: list[str]) -> int:
    """MODEL_DIR RUN_DIR [--lora] [--bf16]"""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args(words)
    args = TrainingArguments(
        str(options.run_dir),
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=1,
        learning_rate=0.01,
        use_cpu=True,
        bf16=options.bf16,
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(options.model)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(4, 500, (8, 16))]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.accelerator.distributed_type == "DEEPSPEED" and args.world_size == 2
    assert trainer.deepspeed.zero_optimization_stage() == 3
    trainer.save_model()
    save_reference(model, options.run_dir, args.process_index)
    trainer.accelerator.wait_for_everyone()
    if args.process_index == 0:
        publish(options.run_dir / "checkpoint-2", step=2, world_size=2, extra={})
        publish(options.run_dir, step=2, world_size=2, extra={})
    trainer.accelerator.wait_for_everyone()
    return 0


def save_reference(model, run_dir: Path, rank: int) -> None:
    """Every parameter whole, in the dtype it has in the engine."""
    named = dict(model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(named.values())):
        whole = {name: p.detach().clone() for name, p in named.items()}
    if rank == 0:
        save_file(whole, run_dir / "reference.safetensors")
