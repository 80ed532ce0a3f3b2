"""Training on one GPU: speed, MFU and memory beside TRL's own ways, after the checks of tests/gpu.

    python -m tests.benchmarks.bench_gpu [--minutes 8] [--output FILE.json]
    python -m tests.benchmarks.bench_gpu --dry-run     # the same path on a CPU with a tiny model

Models of random weights, with the shapes of Qwen3-1.7B (all weights trained) and Qwen3-8B (LoRA). Documents of random
ids with the lengths of Alpaca in Qwen3's tokens. For each model: `packhaul` (train.sft as it is, rows of 8,192 tokens
packed here), `trl_packed` (SFTTrainer, packing=True, max_length 8,192) and `trl_padded` (SFTTrainer's defaults), and at
the end, where time is left, `packhaul_compiled` (torch_compile). Each measurement is a process of its own, in bf16; all
ways of a model have the same gradient checkpointing (8B: on; 1.7B: off, one row a step fits 80 GB without it); the
first steps are not counted. Targets on an H100, for the 1.7B shape: MFU of 0.50, 1.15 times trl_packed, 3 times
trl_padded, by trained tokens a second.

The last line is JSON: `device`, `checks` (exit code of tests/gpu), `measured` with `tokens_per_second`,
`trained_tokens_per_second`, `mfu`, `peak_gib`, `step_seconds`, or `error`, and the ratios to TRL.

MFU counts, as `train.throughput` does, 6 operations a weight and real token (4 for LoRA, whose frozen weights have no
gradient), embeddings aside, the head on trained tokens, and 6 x layers x heads x head_dim for each pair of tokens in a
document (12 for both products and both passes, halved as attention is causal). What checkpointing computes again is not
counted. Peaks: dense bf16, of TRL's table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.packing import pack
from data_prep.shards import MANIFEST, TOKENIZER_DIR, to_json, write_shard

# Quantiles (0, 1/40, ..., 1) of 6,000 rows of Alpaca as ChatML in Qwen3's tokens: up to the answer, and of the answer.
PROMPT = [
    12, 14, 15, 16, 16, 17, 17, 17, 18, 18, 18, 19, 19, 19, 20, 20, 20, 21, 21, 22, 22,
    22, 23, 23, 24, 25, 25, 26, 27, 27, 28, 29, 30, 32, 33, 35, 37, 41, 46, 59, 257,
]  # fmt: skip
ANSWER = [
    2, 4, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 20, 22, 25, 28, 31, 35, 39, 44,
    49, 53, 58, 62, 67, 70, 75, 79, 83, 87, 91, 96, 102, 108, 116, 124, 136, 156, 197, 623,
]  # fmt: skip
QWEN3 = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960}
SHAPES: dict[str, dict[str, Any]] = {
    "1.7B": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
             "num_attention_heads": 16, "tie_word_embeddings": True},
    "8B_lora": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                "num_attention_heads": 32, "tie_word_embeddings": False},
    "tiny": {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192},
    "tiny_lora": {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192},
}  # fmt: skip
WAYS = ("packhaul", "trl_packed", "trl_padded")
CHECKED = 0.45  # of the time at most goes into tests/gpu, so that the measurements have theirs
WARM_UP = 3  # steps that are not counted: compiling kernels, growing the allocator's pool
LONGEST = 120  # seconds of one measurement


def main(argv: list[str] | None = None) -> int:
    """Run the checks and all measurements within the time given; print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("SHAPE", "WAY", "STEPS"), help="(internal) one measurement")
    options = parser.parse_args(argv)
    if options.measure:
        shape, way, steps = options.measure
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(shape, way, int(steps), Path(folder), options.dry_run)))
        return 0
    report = run_all(options.minutes, options.dry_run)
    text = json.dumps(report)
    if options.output:
        options.output.write_text(text + "\n")
    print(text)
    return 0


def run_all(minutes: float, dry_run: bool) -> dict[str, Any]:
    """The checks, then each measurement in a process of its own (in this one, as a dry run)."""
    deadline = time.monotonic() + 60 * minutes
    report: dict[str, Any] = {"dry_run": dry_run, "device": device_name(dry_run), "measured": {}}
    if not dry_run:
        report["checks"] = run_checks(60 * minutes * CHECKED)
    for shape in ("tiny", "tiny_lora") if dry_run else ("1.7B", "8B_lora"):
        for way in WAYS:
            report["measured"][f"{shape} {way}"] = found = measure_apart(shape, way, deadline, dry_run)
            print(f"{shape} {way}: {found}", file=sys.stderr, flush=True)
        speeds = [report["measured"][f"{shape} {way}"].get("trained_tokens_per_second") for way in WAYS]
        for other, speed in zip(WAYS[1:], speeds[1:], strict=True):
            report[f"{shape} ratio_to_{other}"] = round(speeds[0] / speed, 3) if speeds[0] and speed else None
    if not dry_run:  # a CPU would compile for minutes
        report["measured"]["1.7B packhaul_compiled"] = measure_apart("1.7B", "packhaul_compiled", deadline, dry_run)
    return report


def device_name(dry_run: bool) -> str:
    """The GPU's name."""
    import torch

    return "CPU" if dry_run else torch.cuda.get_device_name()


def run_checks(seconds: float) -> int | str:
    """tests/gpu in a process of its own: its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu"]
    try:
        return subprocess.run(command, timeout=seconds, stdout=sys.stderr).returncode
    except subprocess.TimeoutExpired:
        return "out of time"


def measure_apart(shape: str, way: str, deadline: float, dry_run: bool) -> dict[str, Any]:
    """One measurement; what went wrong instead of figures, so that one failure does not cost the others."""
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return measure(shape, way, 2, Path(folder), dry_run)
    left = deadline - time.monotonic()
    if left < 20:
        return {"error": "out of time"}
    steps = 60 if way == "trl_padded" else 12  # its steps are small
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", "--measure", shape, way, str(steps)]
    try:
        done = subprocess.run(command, timeout=min(left, LONGEST), capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return {"error": "out of time"}
    if done.returncode:
        return {"error": done.stderr[-500:]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(shape: str, way: str, steps: int, folder: Path, dry_run: bool) -> dict[str, Any]:
    """Train `steps` steps and time those after the warm-up."""
    import torch
    from trl.trainer.utils import get_peak_flops

    documents = make_documents(60 if dry_run else 20_000, SHAPES[shape]["vocab_size"])
    model_dir = write_model(folder / "model", SHAPES[shape])
    seen: list[tuple[float, int, int, int]] = []
    with random_weights(), watched_steps(seen), contextlib.redirect_stdout(sys.stderr):
        if way.startswith("packhaul"):
            compiled = way == "packhaul_compiled"
            train_with_packhaul(documents, model_dir, shape, steps, folder, dry_run, torch_compile=compiled)
        else:
            train_with_trl(documents, model_dir, shape, steps, folder, dry_run, packed=way == "trl_packed")
    warm_up = 1 if dry_run else WARM_UP
    (begun, *_), counted = seen[warm_up - 1], seen[warm_up:]
    seconds, tokens, trained, pairs = counted[-1][0] - begun, *(sum(s[i] for s in counted) for i in (1, 2, 3))
    peak = get_peak_flops(device_name(dry_run), "bfloat16")
    operations = count_operations(SHAPES[shape], tokens, trained, pairs, lora=shape.endswith("_lora"))
    return {
        "tokens_per_second": round(tokens / seconds),
        "trained_tokens_per_second": round(trained / seconds),
        "step_seconds": round(seconds / len(counted), 4),
        "mfu": round(operations / seconds / peak, 4) if peak else None,
        "peak_gib": None if dry_run else round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def count_operations(shape: dict[str, Any], tokens: int, trained: int, pairs: int, *, lora: bool) -> float:
    """Floating-point operations of forward and backward; see the module's text.

    Args:
        tokens: real ones, without padding.
        trained: those with a label.
        pairs: sum of the squares of the documents' lengths.
    """
    width, heads, kv, dim = (
        shape[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    layer = width * dim * (2 * heads + 2 * kv) + 3 * width * shape["intermediate_size"]
    weights = shape["num_hidden_layers"] * layer * tokens + shape["vocab_size"] * width * trained
    attention = 6 * shape["num_hidden_layers"] * heads * dim * pairs
    return (4 if lora else 6) * weights + attention


def make_documents(count: int, vocabulary: int) -> list[tuple[np.ndarray, int]]:
    """(ids, where the answer begins) of documents with Alpaca's lengths."""
    random = np.random.default_rng(0)
    places = np.linspace(0, 1, len(PROMPT))
    prompts, answers = (np.interp(random.random(count), places, q).astype(int) for q in (PROMPT, ANSWER))
    return [
        (random.integers(4, vocabulary, p + a).astype(np.int32), int(p)) for p, a in zip(prompts, answers, strict=True)
    ]


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A model folder without weights: they are made on the device."""
    from transformers import Qwen3Config

    Qwen3Config(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_tokenizer(folder: Path) -> Any:
    """The smallest tokenizer that loads: ids are random, so nothing is ever encoded."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<end>": 1, "<unk>": 2}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
    tokenizer.save_pretrained(folder)
    return tokenizer


@contextlib.contextmanager
def random_weights() -> Any:
    """Models come from their configuration, with weights made on the device: nothing is read from disk."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer import sft_trainer

    def create(path: str, **kwargs: Any) -> Any:
        names = ("attn_implementation", "dtype")
        given = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        given["dtype"] = getattr(torch, str(given.get("dtype", "float32")).removeprefix("torch."))
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), **given)
        model.config._name_or_path = path
        return model

    original = sft_trainer.create_model_from_path
    sft_trainer.create_model_from_path = create
    try:
        yield
    finally:
        sft_trainer.create_model_from_path = original


@contextlib.contextmanager
def watched_steps(seen: list[tuple[float, int, int, int]]) -> Any:
    """Add (time, real tokens, trained tokens, sum of squared document lengths) of each optimizer step to `seen`."""
    import torch
    from transformers import DefaultFlowCallback, Trainer

    sums, training_step, step_end = [0, 0, 0], Trainer.training_step, DefaultFlowCallback.on_step_end

    def counted(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mask = inputs.get("attention_mask")
        lengths = mask.sum(-1) if mask is not None else inputs["cu_seq_lens_q"].diff()
        for i, value in enumerate((lengths.sum(), (inputs["labels"] != -100).sum(), (lengths.long() ** 2).sum())):
            sums[i] = sums[i] + value  # stays on the device until the step's end
        return training_step(self, model, inputs, *args, **kwargs)

    def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
        values = [int(value) for value in sums]  # waits for the device
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seen.append((time.perf_counter(), *values))
        sums[:] = [0, 0, 0]
        return step_end(self, *args, **kwargs)

    Trainer.training_step, DefaultFlowCallback.on_step_end = counted, ended
    try:
        yield
    finally:
        Trainer.training_step, DefaultFlowCallback.on_step_end = training_step, step_end


def common_options(shape: str, steps: int, folder: Path, dry_run: bool) -> dict[str, Any]:
    """What all ways share: precision, checkpointing, optimizer, nothing written or logged in between."""
    fixed = {
        "output_dir": str(folder / "run"),
        "max_steps": steps,
        "learning_rate": 1e-5,
        "gradient_checkpointing": shape != "1.7B",
    }
    quiet = {"save_strategy": "no", "report_to": "none", "logging_steps": 1000, "disable_tqdm": True}
    device = {"use_cpu": dry_run, "bf16": not dry_run, "optim": "adamw_torch" if dry_run else "adamw_torch_fused"}
    return {**fixed, **quiet, **device}


def packed_rows(shape: str) -> int:
    """Packed rows of a step."""
    return 1 if shape == "1.7B" else 2


def train_with_packhaul(
    documents: list[tuple[np.ndarray, int]],
    model_dir: Path,
    shape: str,
    steps: int,
    folder: Path,
    dry_run: bool,
    *,
    torch_compile: bool,
) -> None:
    """train.sft on shards packed as data_prep packs them."""
    import yaml

    from train.sft import main as sft

    shards = write_shards(folder / "shards", documents, seq_len=1024 if dry_run else 8192)
    options = {**common_options(shape, steps, folder, dry_run), "data": str(shards), "torch_compile": torch_compile}
    options["per_device_train_batch_size"] = packed_rows(shape)
    options |= {"model_name_or_path": str(model_dir), "dtype": "bfloat16" if shape == "8B_lora" else "float32"}
    if shape.endswith("_lora"):
        options |= {"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
        options |= {"lora_target_modules": "all-linear"}
    (folder / "run.yaml").write_text(yaml.safe_dump(options))
    if sft(["--config", str(folder / "run.yaml")]):
        raise RuntimeError("train.sft did not end with 0")


def write_shards(folder: Path, documents: list[tuple[np.ndarray, int]], seq_len: int) -> Path:
    """A complete shard directory of packed rows."""
    rows = []
    for bin_ in pack_documents([len(ids) for ids, _ in documents], seq_len):
        chosen = [documents[i] for i in bin_]
        labels = [np.where(np.arange(len(ids)) < start, -100, ids).astype(np.int32) for ids, start in chosen]
        lengths = np.array([len(ids) for ids, _ in chosen], dtype=np.int32)
        row = {"input_ids": np.concatenate([ids for ids, _ in chosen]), "labels": np.concatenate(labels)}
        rows.append({**row, "seq_lengths": lengths, "sources": np.zeros(len(chosen), dtype=np.int32)})
    write_tokenizer(folder / TOKENIZER_DIR)
    shard = {"file": "train/00000.arrow", **write_shard(folder / "train/00000.arrow", rows)}
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(int((row["labels"] != -100).sum()) for row in rows)
    train = {"rows": len(rows), "documents": len(documents), "tokens": tokens, "trained_tokens": trained}
    empty = {"rows": 0, "documents": 0, "tokens": 0, "trained_tokens": 0, "shards": []}
    manifest = {"format_version": 1, "seq_len": seq_len, "tokenizer": {"size": 3}, "end_token_ids": [1]}
    manifest |= {"sources": [{"name": "random"}], "recipe": {"order": "shuffle"}, "bos_token_id": None}
    manifest["splits"] = {"train": {**train, "shards": [shard]}, "eval": empty}
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return folder


def pack_documents(lengths: list[int], seq_len: int) -> list[list[int]]:
    """Documents of each row, by the packing of data preparation."""
    rows, count = pack(np.array(lengths), seq_len)
    return [np.flatnonzero(rows == row).tolist() for row in range(count)]


def train_with_trl(
    documents: list[tuple[np.ndarray, int]],
    model_dir: Path,
    shape: str,
    steps: int,
    folder: Path,
    dry_run: bool,
    *,
    packed: bool,
) -> None:
    """SFTTrainer with its defaults, padded, or with its packing and the attention that TRL asks for with it."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from train.attention import has_distribution

    columns = {"input_ids": [ids.tolist() for ids, _ in documents]}
    columns["completion_mask"] = [[int(i >= start) for i in range(len(ids))] for ids, start in documents]
    flash = packed and not dry_run and has_distribution("flash-attn")
    load = {"dtype": "bfloat16" if shape == "8B_lora" else "float32"}
    load |= {"attn_implementation": "flash_attention_2"} if flash else {}
    length = 1024 if dry_run else 8192
    options: dict[str, Any] = (
        {"packing": True, "max_length": length, "per_device_train_batch_size": packed_rows(shape)} if packed else {}
    )
    options["completion_only_loss"] = True
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=str(model_dir),
        args=SFTConfig(**common_options(shape, steps, folder, dry_run), **options, model_init_kwargs=load),
        train_dataset=Dataset.from_dict(columns),
        processing_class=write_tokenizer(folder / "tokenizer"),
        peft_config=lora if shape.endswith("_lora") else None,
    )
    trainer.train()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    sys.exit(main())
