"""What layers with a state cost on packed rows: the padding of their documents, and the time of a step.

    python -m tests.benchmarks.bench_documentwise --data FOLDER [--seq-lens 2048 4096 8192] [--steps 3]

Rows: Alpaca as ChatML with the Qwen3 tokenizer, packed. The last line is JSON:
    padding     by sequence length: padding / tokens that such a layer computes, and its calls a row, for groups of like
                length (`grouped`), the fixed number of calls that ZeRO-3 needs (`fixed`), and one call with all
                documents padded to the longest (`one_call`)
    step        by model, of one row of the first length: seconds of forward and backward / those of the same row with
                its documents joined, which mixes them and stands for a kernel that takes bounds (`grouped`, `fixed`,
                `one_by_one`: a call for each document; `unpacked`: all layers see one document at a time)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

import numpy as np
import torch

from data_prep.mixture.packing import pack
from tests.benchmarks.bench_packing import alpaca_lengths
from train.model import documentwise
from train.model.documentwise import CALLS, few_groups, groups

_SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1024, "max_position_embeddings": 8192}
_DELTA = {
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MODELS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": {"layer_types": [*["linear_attention"] * 3, "full_attention"], **_DELTA},
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1, "state_size": 16},
}


def main(argv: list[str] | None = None) -> int:
    """Padding at each sequence length, then steps of each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real data sets and tokenizers")
    parser.add_argument("--seq-lens", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each way; their median counts")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    lengths = alpaca_lengths(arguments.data)
    rows = {size: packed_rows(lengths[lengths <= size], size) for size in arguments.seq_lens}
    result: dict[str, Any] = {"padding": {size: padding(found) for size, found in rows.items()}, "step": {}}
    print("padding", result["padding"], flush=True)
    row = next(iter(rows.values()))[0]
    for name in MODELS:
        result["step"][name] = step_ratios(name, row, arguments.steps)
        print(name, result["step"][name], flush=True)
    print(json.dumps(result))
    return 0


def packed_rows(lengths: np.ndarray, seq_len: int) -> list[list[int]]:
    """The documents' lengths of each row."""
    row_of, _ = pack(lengths, seq_len)
    order = np.argsort(row_of, kind="stable")
    ends = np.cumsum(np.bincount(row_of))[:-1]
    return [part.tolist() for part in np.split(lengths[order], ends)]


def padding(rows: list[list[int]]) -> dict[str, dict[str, float]]:
    """Of each way, over all rows."""
    ways: dict[str, Callable[[list[int]], list[list[int]]]] = {
        "grouped": groups,
        "fixed": lambda row: few_groups(row, CALLS),
        "one_call": lambda row: groups(row, waste=1.0),
    }
    return {name: _padding(rows, way) for name, way in ways.items()}


def _padding(rows: list[list[int]], way: Callable[[list[int]], list[list[int]]]) -> dict[str, float]:
    tokens = computed = calls = 0
    for row in rows:
        found = way(row)
        tokens += sum(row)
        computed += sum(row[group[0]] * len(group) for group in found)
        calls += len(found)
    return {"share": round(1 - tokens / computed, 4), "calls": round(calls / len(rows), 2)}


def step_ratios(name: str, row: list[int], steps: int) -> dict[str, float]:
    """Seconds of each way / those of the joined row."""
    ways = {
        "joined": lambda model: _packed(model, row, bounds=False),
        "grouped": lambda model: _packed(model, row),
        "fixed": lambda model: _packed(model, row),
        "one_by_one": lambda model: _packed(model, row),
        "unpacked": lambda model: [_packed(model, [length], bounds=False) for length in row],
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    models = {way: _model(name, way) for way in ways}
    for _ in range(steps + 1):
        for way, step in ways.items():
            begun = time.perf_counter()
            step(models[way])
            seconds[way].append(time.perf_counter() - begun)
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}  # the first one warms up
    return {way: round(median / medians["joined"], 3) for way, median in medians.items()}


def _model(name: str, way: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **{**_SIZES, **MODELS[name]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    if way not in ("joined", "unpacked"):
        documentwise.install(model)
    if way == "fixed":
        documentwise.fix_calls(model)
    if way == "one_by_one":
        model._document_bounds.indices = _one_by_one(model._document_bounds)
    return model


def _one_by_one(bounds: documentwise.Bounds) -> Callable[[torch.device], list[documentwise.Group]]:
    def indices(device: torch.device) -> list[documentwise.Group]:
        assert bounds.lengths is not None
        return [documentwise._group(bounds.lengths, [number]) for number in range(len(bounds.lengths))]

    return indices


def _packed(model: Any, row: list[int], bounds: bool = True) -> None:
    """Forward and backward of one row."""
    ids = torch.randint(0, _SIZES["vocab_size"], (1, sum(row)))
    ends = torch.tensor([0, *row]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in row])[None]
    known = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(row), "max_length_k": max(row)}
    logits = model(input_ids=ids, position_ids=positions, use_cache=False, **(known if bounds else {})).logits
    torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()


if __name__ == "__main__":
    sys.exit(main())
