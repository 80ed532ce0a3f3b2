"""What the GPU benchmark trains on: models of random weights in known shapes, documents with the lengths of Alpaca."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.mixture.packing import pack
from data_prep.shards import IGNORE_INDEX, MANIFEST, TOKENIZER_DIR, to_json, write_shard

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
TINY = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16, "tie_word_embeddings": True},
    "1.7B": {**QWEN3, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
             "num_attention_heads": 16, "tie_word_embeddings": True},
    "8B_lora": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                "num_attention_heads": 32, "tie_word_embeddings": False},
    "tiny": TINY,
    "tiny_lora": TINY,
}  # fmt: skip

Documents = list[tuple[np.ndarray, int]]  # ids, and where the answer begins


def make_documents(count: int, vocabulary: int, longest: int = 8192) -> Documents:
    """Random ids with Alpaca's lengths; those over `longest` are left out."""
    random = np.random.default_rng(0)
    places = np.linspace(0, 1, len(PROMPT))
    prompts, answers = (np.interp(random.random(count), places, q).astype(int) for q in (PROMPT, ANSWER))
    return [
        (random.integers(4, vocabulary, p + a).astype(np.int32), int(p))
        for p, a in zip(prompts, answers, strict=True)
        if p + a <= longest
    ]


def write_model(folder: Path, shape: dict[str, Any]) -> Path:
    """A model folder without weights: they are made on the device."""
    from transformers import Qwen3Config

    Qwen3Config(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # a file of no tensors
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
def random_weights() -> Iterator[None]:
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


WHOLE_STEPS = 8  # rows: a multiple of every step's, or a filler row would stand in for one of a step that is timed


def write_shards(folder: Path, documents: Documents, seq_len: int) -> Path:
    """A complete shard directory of packed rows; the last few are left out, so that they fill whole steps."""
    bins = pack_documents([len(ids) for ids, _ in documents], seq_len)
    rows = []
    for bin_ in bins[: len(bins) // WHOLE_STEPS * WHOLE_STEPS or None]:
        chosen = [documents[i] for i in bin_]
        labels = [np.where(np.arange(len(ids)) < start, IGNORE_INDEX, ids).astype(np.int32) for ids, start in chosen]
        lengths = np.array([len(ids) for ids, _ in chosen], dtype=np.int32)
        row = {"input_ids": np.concatenate([ids for ids, _ in chosen]), "labels": np.concatenate(labels)}
        rows.append({**row, "seq_lengths": lengths, "sources": np.zeros(len(chosen), dtype=np.int32)})
    write_tokenizer(folder / TOKENIZER_DIR)
    shard = {"file": "train/00000.arrow", **write_shard(folder / "train/00000.arrow", rows)}
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(int((row["labels"] != IGNORE_INDEX).sum()) for row in rows)
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
