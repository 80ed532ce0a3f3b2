"""A tiny model that has learnt two answers by heart, and train.generate in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.export_runs import run_export
from train import generate
from train.checkpoint.folders import publish

LESSONS = {
    "사과는 왜 빨간가요?": "안토시아닌이라는 색소 때문입니다 🍎👩‍⚕️!",
    "Say hello.": "Hello, my friend.",
}


def teach(model_dir: Path, tokenizer: Any, folder: Path) -> Path:
    """Train the model of `model_dir` on LESSONS; `folder` then holds `run`, with its final model, and its `export`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in LESSONS.items()]
    batch = tokenizer.apply_chat_template(chats, return_dict=True, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "run")
    tokenizer.save_pretrained(folder / "run")
    publish(folder / "run", step=150, world_size=1, extra={})
    run_export(folder / "run", folder / "export")
    return folder / "export"


def ask(model: Path, *options: str) -> None:
    generate.main(["--model", str(model), *options])
