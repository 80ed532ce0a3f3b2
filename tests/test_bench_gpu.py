"""The GPU benchmark's whole path, on a CPU with tiny models, and the arithmetic of its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.benchmarks import bench_gpu
from tests.in_process import as_a_fresh_process


def test_dry_run(tmp_path, capsys):
    with as_a_fresh_process():
        assert bench_gpu.main(["--dry-run", "--output", str(tmp_path / "out.json")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((tmp_path / "out.json").read_text())
    expected = {f"{shape} {way}" for shape in ("tiny", "tiny_lora") for way in bench_gpu.WAYS}
    assert set(report["measured"]) == expected
    for found in report["measured"].values():
        share = found["trained_tokens_per_second"] / found["tokens_per_second"]
        assert 0.5 < share < 0.95  # completions only, in every way
    assert report["tiny ratio_to_trl_padded"] > 0


def test_operations_are_those_of_the_weights(tiny_tokenizer):
    """Twice the multiply-adds of each weight, three passes; against the weights of a real model."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    shape = {**bench_gpu.SHAPES["tiny"], "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(Qwen3Config(**shape))
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    head = shape["vocab_size"] * shape["hidden_size"]
    assert bench_gpu.count_operations(shape, tokens=10, trained=10, pairs=0, lora=False) == 6 * weights * 10
    assert bench_gpu.count_operations(shape, tokens=10, trained=4, pairs=0, lora=False) == 6 * (weights * 10 - head * 6)
    assert bench_gpu.count_operations(shape, tokens=10, trained=10, pairs=0, lora=True) == 4 * weights * 10
    one = 6 * shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"]
    assert bench_gpu.count_operations(shape, tokens=0, trained=0, pairs=100, lora=False) == one * 100


def test_lengths_are_alpacas():
    """The real means are 25.5 and 58.9; straight lines between the quantiles raise them a little."""
    documents = bench_gpu.make_documents(20_000, 300)
    assert np.mean([start for _, start in documents]) == pytest.approx(25.5, rel=0.2)
    assert np.mean([len(ids) - start for ids, start in documents]) == pytest.approx(58.9, rel=0.2)
