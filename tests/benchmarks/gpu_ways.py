"""The ways that the GPU benchmark trains in: this project's, and TRL's own, on the same documents and rows a step."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_inputs import Documents, write_shards, write_tokenizer

WAYS = ("packhaul", "packhaul_compiled", "trl_packed_varlen", "trl_packed", "trl_padded")
# Packed rows of a forward pass, and forward passes of an optimizer step.
ROWS = {"0.6B": (1, 4), "1.7B": (1, 4), "8B_lora": (2, 1), "tiny": (1, 2), "tiny_lora": (2, 1)}
DRY_SEQ_LEN = 512
PADDED = 8  # documents of a forward pass where they are padded: the library's default


@dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement."""

    shape: str
    way: str
    steps: int
    folder: Path
    dry_run: bool  # on a CPU, with the kernel's stand-in
    rows: int | None = None  # packed rows of an optimizer step; None: by ROWS
    at_once: int | None = None  # packed rows of a forward pass; None: by ROWS
    options: dict[str, Any] = field(default_factory=dict)  # of SFTConfig, over those that all ways share

    @property
    def lora(self) -> bool:
        """Adapters on frozen weights in bf16, instead of all weights in fp32."""
        return self.shape.endswith("_lora")

    @property
    def seq_len(self) -> int:
        """Tokens of a packed row."""
        return DRY_SEQ_LEN if self.dry_run else 8192

    @property
    def batch(self) -> tuple[int, int]:
        """Packed rows of a forward pass, and forward passes of a step.

        Raises:
            ValueError: the rows of a step are no multiple of those of a forward pass.
        """
        usual, passes = ROWS[self.shape]
        at_once, rows = self.at_once or usual, self.rows or usual * passes
        passes, rest = divmod(rows, at_once)
        if rest or not passes:
            raise ValueError(f"--rows {rows}: expected a multiple of {at_once} for {self.shape}")
        return at_once, passes


def train(task: Task, documents: Documents, model_dir: Path) -> None:
    """Train in the way asked for.

    Raises:
        ValueError: no such way.
    """
    if task.way not in WAYS:
        raise ValueError(f"no way {task.way!r}: expected one of {', '.join(WAYS)}")
    if task.way.startswith("packhaul"):
        train_with_packhaul(task, documents, model_dir)
    else:
        train_with_trl(task, documents, model_dir)


def common_options(task: Task) -> dict[str, Any]:
    """What all ways share: precision, checkpointing, optimizer, nothing written or logged in between."""
    fixed = {
        "output_dir": str(task.folder / "run"),
        "max_steps": task.steps,
        "learning_rate": 1e-5,
        "gradient_checkpointing": task.lora,
    }
    quiet = {"save_strategy": "no", "report_to": "none", "logging_steps": 1000, "disable_tqdm": True}
    device = {"use_cpu": task.dry_run, "bf16": True, "optim": "adamw_torch_fused"}
    return {**fixed, **quiet, **device, **task.options}


def train_with_packhaul(task: Task, documents: Documents, model_dir: Path) -> None:
    """train.sft on shards packed as data_prep packs them."""
    import yaml

    from train.sft import main as sft

    shards = write_shards(task.folder / "shards", documents, task.seq_len)
    options = {**common_options(task), "data": str(shards), "model_name_or_path": str(model_dir)}
    options["per_device_train_batch_size"], options["gradient_accumulation_steps"] = task.batch
    options["dtype"] = "bfloat16" if task.lora else "float32"
    kinds = [kind for kind in ("DEEPSPEED", "FSDP") if os.environ.get(f"ACCELERATE_USE_{kind}") == "true"]
    options |= {"expected_world_size": 1, "expected_distributed_type": kinds[0] if kinds else "NO"}
    if task.way == "packhaul_compiled":  # rows of one length: each further length would be compiled for
        options |= {"torch_compile": True, "pad_to_multiple_of": task.seq_len}
        options |= {"torch_compile_backend": "aot_eager"} if task.dry_run else {}  # a CPU would compile for minutes
    if task.lora:
        options |= {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
        options |= {"lora_target_modules": "all-linear"}
    (task.folder / "run.yaml").write_text(yaml.safe_dump(options))
    with no_final_weights():
        if sft(["--config", str(task.folder / "run.yaml")]):
            raise RuntimeError("train.sft did not end with 0")


@contextlib.contextmanager
def no_final_weights() -> Iterator[None]:
    """Checkpoints are saved as ever, but not what a run saves at its end: gigabytes that nobody reads."""
    from transformers import Trainer

    save_model = Trainer.save_model

    def save(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if _internal_call:
            save_model(self, output_dir, _internal_call)

    Trainer.save_model = save
    try:
        yield
    finally:
        Trainer.save_model = save_model


def train_with_trl(task: Task, documents: Documents, model_dir: Path) -> None:
    """SFTTrainer: padded as by default, packed with the attention that it takes by itself, or packed with ours."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    columns = {"input_ids": [ids.tolist() for ids, _ in documents]}
    columns["completion_mask"] = [[int(i >= start) for i in range(len(ids))] for ids, start in documents]
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=str(model_dir),
        args=SFTConfig(**common_options(task), **trl_options(task, documents)),
        train_dataset=Dataset.from_dict(columns),
        processing_class=write_tokenizer(task.folder / "tokenizer"),
        peft_config=lora if task.lora else None,
    )
    trainer.train()


def trl_options(task: Task, documents: Documents) -> dict[str, Any]:
    """Rows, packing and attention of one of TRL's ways.

    `trl_packed_varlen` names our attention, registered with transformers, as `attn_implementation`. TRL's collator
    gives it the ends of documents (cu_seq_lens_q), which it makes for flash attention. `trl_packed` is TRL as it comes:
    sdpa with a mask of the row's square, or flash attention where that is installed.
    """
    from train.model import varlen
    from train.model.attention import has_distribution

    load = {"dtype": "bfloat16" if task.lora else "float32"}
    at_once, passes = task.batch
    options: dict[str, Any] = {"completion_only_loss": True, "model_init_kwargs": load}
    if task.way == "trl_padded":
        mean = sum(len(ids) for ids, _ in documents) / len(documents)
        passes = max(1, round(at_once * passes * task.seq_len / mean / PADDED))
        return {**options, "per_device_train_batch_size": PADDED, "gradient_accumulation_steps": passes}
    if task.way == "trl_packed_varlen":
        varlen.register()
        load["attn_implementation"] = varlen.NAME
    elif has_distribution("flash-attn") and not task.dry_run:
        load["attn_implementation"] = "flash_attention_2"
    rows = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": passes}
    return {**options, **rows, "packing": True, "max_length": task.seq_len}
