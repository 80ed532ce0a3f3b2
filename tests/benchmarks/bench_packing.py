"""Packing of real lengths next to plain best-fit-decreasing and TRL's: how full rows are, and how much alike.

    python -m tests.benchmarks.bench_packing --data FOLDER [--seq-lens 2048 4096 8192]

Documents: Alpaca as ChatML with the Qwen3 tokenizer, and the same with a tenth of the documents joined ten at a time (a
mixture of short and long ones). The last line is JSON, by documents, sequence length and packing (`packhaul`,
`best_fit_decreasing`, `trl`):
    efficiency       tokens / (rows x seq_len)
    length_spread    of the rows' mean document length: standard deviation / mean
    attention_wait   attention's operations (documents' lengths squared) of the busiest of 8 processes with a row each /
                     the mean over the 8; the mean over all steps: 1 means that nobody waits
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import numpy as np

from data_prep.mixture.packing import best_fit_decreasing, pack
from data_prep.prepare import prepare
from data_prep.recipe import Recipe
from data_prep.shards import read_manifest, read_rows, shard_files

PROCESSES = 8
Packing = Callable[[np.ndarray, int], np.ndarray]  # (documents,) lengths and seq_len -> (documents,) rows


def main(argv: list[str] | None = None) -> int:
    """Lengths, then each packing of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets and tokenizers")
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[2048, 4096, 8192])
    arguments = parser.parse_args(argv)
    lengths = alpaca_lengths(arguments.data)
    packings: dict[str, Packing] = {"packhaul": lambda *case: pack(*case)[0], "best_fit_decreasing": plain, "trl": trl}
    result: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for documents, found in {"alpaca": lengths, "alpaca_joined": joined(lengths)}.items():
        result[documents] = {}
        for seq_len in arguments.seq_lens:
            fitting = found[found <= seq_len]
            measured = {name: measure(fitting, seq_len, rows(fitting, seq_len)) for name, rows in packings.items()}
            result[documents][seq_len] = measured
            print(documents, seq_len, measured, flush=True)
    print(json.dumps(result))
    return 0


def alpaca_lengths(data: Path) -> np.ndarray:
    """(documents,) tokens of each, in the order of the file as far as packing has kept it: by chance."""
    source = {"name": "alpaca", "path": str(data / "text/en/alpaca_52k.json"), "form": "alpaca"}
    recipe = {"tokenizer": str(data / "tokenizers/qwen3"), "chat_template": "chatml", "seq_len": 8192}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Recipe.model_validate({**recipe, "sources": [source]}), Path(folder), num_workers=2)
        files = shard_files(folder, read_manifest(folder), "train")
        found = [row["seq_lengths"] for file in files for row in read_rows(file)]
    return np.random.default_rng(0).permutation(np.concatenate(found).astype(np.int64))


def joined(lengths: np.ndarray) -> np.ndarray:
    """A tenth of the documents in tens, as long dialogues."""
    number = lengths.size // 100 * 10
    return np.random.default_rng(1).permutation(
        np.concatenate([lengths[number:], lengths[:number].reshape(-1, 10).sum(axis=1)])
    )


def plain(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Best-fit-decreasing over all documents."""
    return best_fit_decreasing(lengths, seq_len, np.argsort(-lengths, kind="stable"))[0]


def trl(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """TRL's default packing, over windows of 1,000 documents; rows in the order it makes them."""
    from datasets import Dataset
    from trl import pack_dataset

    documents = Dataset.from_dict({"input_ids": [np.full(n, i, dtype=np.int32) for i, n in enumerate(lengths)]})
    row_of = np.empty(lengths.size, dtype=np.int64)
    packed = pack_dataset(documents, seq_len, strategy="bfd").with_format("numpy")
    for number, row in enumerate(packed):
        row_of[np.unique(row["input_ids"])] = number
    return row_of


def measure(lengths: np.ndarray, seq_len: int, row_of: np.ndarray) -> dict[str, float]:
    """The figures of one packing, with rows in random order."""
    tokens = np.bincount(row_of, weights=lengths)
    means = tokens / np.bincount(row_of)
    attention = np.bincount(row_of, weights=lengths.astype(np.float64) ** 2)
    attention = np.random.default_rng(2).permutation(attention)[: attention.size // PROCESSES * PROCESSES]
    steps = attention.reshape(-1, PROCESSES)
    figures = {
        "efficiency": tokens.sum() / (tokens.size * seq_len),
        "length_spread": means.std() / means.mean(),
        "attention_wait": (steps.max(axis=1) / steps.mean(axis=1)).mean(),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
