"""Shards and a model folder written by hand, for checks that read files only: no torch, no tokenizer library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.atomic_files import to_json
from data_prep.shards import MANIFEST, TOKENIZER_DIR, write_shard

WORDS = {"<pad>": 0, "<end>": 1, "one": 2, "two": 3, "three": 4, "four": 5}


def write_tokenizer(folder: Path, vocabulary: dict[str, int], added: dict[str, int] | None = None) -> None:
    """A tokenizer.json with nothing in it but what the check reads."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{"content": token, "id": i} for token, i in (added or {}).items()]
    content = {"added_tokens": listed, "model": {"type": "WordLevel", "vocab": vocabulary}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def write_shards(
    folder: Path, *, rows: int = 40, eval_rows: int = 4, seq_len: int = 16, largest_id: int = 5, document: int = 8
) -> Path:
    """A complete shard directory: every row two documents of `document` tokens, with ids up to `largest_id`."""
    write_tokenizer(folder / TOKENIZER_DIR, WORDS)
    ids = np.resize(np.arange(2, largest_id + 1, dtype=np.int32), 2 * document)
    row = {
        "input_ids": ids,
        "labels": ids,
        "seq_lengths": np.array([document, document], dtype=np.int32),
        "sources": np.zeros(2, dtype=np.int32),
    }
    splits = {}
    for split, number in (("train", rows), ("eval", eval_rows)):
        file = f"{split}/00000.arrow"
        shards = [{"file": file, **write_shard(folder / file, [row] * number)}] if number else []
        tokens = number * 2 * document
        splits[split] = {"rows": number, "documents": 2 * number, "tokens": tokens, "trained_tokens": tokens // 2}
        splits[split]["shards"] = shards
    manifest = {
        "format_version": 1,
        "seq_len": seq_len,
        "tokenizer": {"size": len(WORDS)},
        "sources": [{"name": "words"}],
        "splits": splits,
    }
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return folder


def write_model(folder: Path, vocabulary: dict[str, int] | None = None, **settings: Any) -> Path:
    """A model folder as far as the checks look: config.json, tokenizer.json, a weights file with an embedding."""
    from safetensors.numpy import save_file

    write_tokenizer(folder, WORDS if vocabulary is None else vocabulary)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8, "max_position_embeddings": 64, **settings}))
    save_file({"model.embed_tokens.weight": np.eye(8, dtype=np.float16)}, folder / "model.safetensors")
    return folder
