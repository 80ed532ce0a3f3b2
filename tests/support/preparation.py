"""Small preparations: their recipe, and how they are run and read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import yaml

from data_prep import prepare
from data_prep.shards import read_manifest, read_rows, shard_files

NUM_ROWS = 120


def write_recipe(folder: Path, **changes) -> Path:
    """A recipe file in the folder."""
    defaults = {"chat_template": "chatml", "seq_len": 256, "rows_per_slice": 25, "rows_per_shard": 8}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**defaults, **changes}), encoding="utf-8")
    return path


def edit_recipe(path: Path, **changes) -> Path:
    """The recipe file, changed."""
    return write_recipe(path.parent, **{**yaml.safe_load(path.read_text()), **changes})


def run(recipe: Path, output: Path, workers: int = 1) -> int:
    """The exit code of a whole preparation."""
    return prepare.main(["--recipe", str(recipe), "--output", str(output), "--num-workers", str(workers)])


def decoded_documents(folder: Path, tokenizer) -> Counter[str]:
    """The texts of all documents of both splits, and how often each is there."""
    manifest, found = read_manifest(folder), Counter()
    for split in ("train", "eval"):
        for path in shard_files(folder, manifest, split):
            for row in read_rows(path):
                start = 0
                for length in row["seq_lengths"]:
                    found[tokenizer.decode(row["input_ids"][start : start + length])] += 1
                    start += length
    return found
