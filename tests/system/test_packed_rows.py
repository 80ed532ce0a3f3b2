"""Packed documents do not see each other: logits, loss and gradients equal those of the documents run separately."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from data_prep.shards import IGNORE_INDEX
from tests.support.training import document_loss
from train.loop.data import SourceCollator, pad_to_multiple
from train.loop.evaluation import evaluation_metrics, sum_by_source
from train.model.varlen import register

LENGTHS = [[5, 40, 17], [33, 1, 24]]  # two packed rows; longer than Gemma's sliding window


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    made = []
    for lengths in LENGTHS:
        ids = random.integers(4, 260, sum(lengths)).tolist()
        labels = [i if random.random() < 0.6 else IGNORE_INDEX for i in ids]
        made.append({"input_ids": ids, "labels": labels, "seq_lengths": lengths, "sources": [0, 1, 0]})
    return made


@pytest.fixture(scope="module")
def batch(rows):
    return SourceCollator(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True))(rows)


def separate(rows):
    for row in rows:
        start = 0
        for length, source in zip(row["seq_lengths"], row["sources"], strict=True):
            yield row["input_ids"][start : start + length], row["labels"][start : start + length], source
            start += length


@pytest.fixture(scope="module", autouse=True)
def varlen():
    register()


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "mistral", "qwen3_moe"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_logits_and_gradients_equal_separate_documents(architecture, attention, mode, rows, batch, tiny_model_dir):
    def load():
        model = AutoModelForCausalLM.from_pretrained(
            tiny_model_dir(architecture), attn_implementation=attention, dtype=torch.float32
        )
        return getattr(model, mode)() if mode == "eval" else model.train()

    packed, alone = load(), load()
    inputs = {k: v for k, v in batch.items() if k != "source_ids"}
    logits = packed(**{k: v for k, v in inputs.items() if k != "labels"}, use_cache=False).logits[0]
    expected = torch.cat(
        [alone(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids, _, _ in separate(rows)]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

    add_fused_lm_head(packed, outputs=("log_probs", "is_top1"))
    loss = -packed(**inputs, fused_lm_head=True, use_cache=False).log_probs.sum()
    loss.backward()
    reference = sum(document_loss(alone, document)[0] for document in separate(rows))
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for (name, got), wanted in zip(packed.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_the_test_can_fail(batch, rows, tiny_model_dir):
    """With a cache, transformers ignores the packing: the comparison above notices."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=torch.float32).eval()
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=True).logits[0]
    expected = torch.cat(
        [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids, _, _ in separate(rows)]
    )
    assert (logits - expected).abs().max() > 0.01


def test_evaluation_by_source_equals_separate_documents(rows, batch, tiny_model_dir):
    from accelerate import Accelerator

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("qwen3"), dtype=torch.float32).eval()
    expected: dict[int, list[float]] = {0: [0.0, 0], 1: [0.0, 0]}
    with torch.no_grad():
        for document in separate(rows):
            loss, tokens = document_loss(model, document)
            expected[document[2]][0] += loss.item()
            expected[document[2]][1] += tokens
    add_fused_lm_head(model, outputs=("log_probs", "is_top1"))
    sums = sum_by_source(model, [dict(batch)], 2, Accelerator(cpu=True))
    metrics = evaluation_metrics(sums, ["a", "b"], "eval")
    assert metrics["eval_a_loss"] == pytest.approx(expected[0][0] / expected[0][1], rel=1e-6)
    assert metrics["eval_b_loss"] == pytest.approx(expected[1][0] / expected[1][1], rel=1e-6)
    total = [sum(x) for x in zip(*expected.values(), strict=True)]
    assert metrics["eval_loss"] == pytest.approx(total[0] / total[1], rel=1e-6)
    assert metrics["eval_tokens"] == total[1]


def test_source_ids_follow_the_documents(batch):
    assert batch["source_ids"].tolist() == [[0] * 5 + [1] * 40 + [0] * 17 + [0] * 33 + [1] + [0] * 24]


def test_filler_rows_train_nothing(rows):
    features = Features({name: List(Value("int32")) for name in rows[0]})
    padded = pad_to_multiple(Dataset.from_list(rows, features=features), 4, token_id=3)
    assert len(padded) == 4 and padded.features == features
    assert padded[2:] == {
        "input_ids": [[3]] * 2,
        "labels": [[IGNORE_INDEX]] * 2,
        "seq_lengths": [[1]] * 2,
        "sources": [[0]] * 2,
    }
    assert pad_to_multiple(padded, 4, 3) is padded
