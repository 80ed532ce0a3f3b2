"""Rows in parts over two ranks, by train.sft: equal to the plain loop, resumed, evaluated and described as whole rows.

One epoch is one step where a run is compared with the plain loop, so the order of rows does not matter there. A filler
row has parts without any trained token.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from data_prep.shards import read_manifest
from tests.support.in_process import assert_equal_training, assert_equal_weights, train_plainly
from tests.support.poisoned_documents import make_poisoned_shards, poison
from tests.support.references import LEARNING_RATE, LORA, SEED, adamw, adapted, adapters, dynamic, load
from tests.support.training import document_loss, document_rows, documents, history, make_shards, run_config

SOURCES = ("short", "long")
NOT_SHARDED = {"expected_distributed_type": "MULTI_CPU"}
STEPS = 3


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    """Rows of very different numbers of trained tokens, fewer than a step takes; both sources are held out."""
    answers = {"short": [1] * 12, "long": [6] * 4}
    return make_shards(tmp_path_factory.mktemp("parts"), tiny_tokenizer.name_or_path, answers, eval_fraction=0.3)


@pytest.fixture(scope="module")
def many(tmp_path_factory, tiny_tokenizer):
    """Rows for several steps of an epoch."""
    answers = {"short": [1] * 60, "long": [6] * 12}
    return make_shards(tmp_path_factory.mktemp("many"), tiny_tokenizer.name_or_path, answers)


@pytest.fixture
def train(worlds, shards, tiny_model_dir, tmp_path):
    """Factory: run train.sft with two ranks to a row; the run directory and what it said."""

    def run(
        name: str, launch: str, processes: int = 2, architecture: str = "llama", stop_at: int | None = None, **more
    ):
        options = {
            "data": str(shards),
            "model_name_or_path": str(tiny_model_dir(architecture)),
            "output_dir": str(tmp_path / name),
            "num_train_epochs": STEPS,
            "learning_rate": LEARNING_RATE,
            "seed": SEED,
            "sequence_parallel": 2,
            "expected_world_size": processes,
            **more,
        }
        config = run_config(tmp_path / f"{name}.yaml", **options)
        stop = {"stop_at": stop_at} if stop_at else {}
        said = worlds.train(launch, config, tmp_path / f"{name}.log", processes=processes, **stop)
        if options["sequence_parallel"] == 2:
            assert (
                "2 ranks hold each row in parts" in said and "packed documents are isolated, cut into 2 parts" in said
            )
        assert f"{processes} process(es), {more.get('expected_distributed_type', 'DEEPSPEED')}" in said
        return tmp_path / name, said

    return run


def steps(folder: Path) -> list[dict]:
    return [entry for entry in history(folder) if "loss" in entry]


def test_zero2_equals_the_plain_loop_and_measures_as_it_does(train, shards, tiny_model_dir):
    """Loss, norm and weights; losses by source, tokens, and evaluations of the first and the last weights."""
    rows = len(document_rows(shards, "train"))
    options = {"gradient_accumulation_steps": rows + 1, "gradient_checkpointing": True, "sample_max_new_tokens": 2}
    folder, said = train("run", "cpu_zero2", eval_strategy="steps", eval_steps=1, **options)
    assert f"{rows + 1} packed rows a step" in said
    base = load(tiny_model_dir("llama"))
    assert_measures(steps(folder)[0], "", base, shards, "train")
    evaluations = [entry for entry in history(folder) if "eval_loss" in entry]
    assert len(evaluations) == STEPS + 1
    assert_measures(evaluations[0], "eval_", base, shards, "eval")
    expected = train_plainly(base, shards, STEPS, adamw)
    assert_equal_training(steps(folder), expected, loss=5e-6, norm=5e-5)
    assert_equal_weights(load(folder).state_dict(), expected.model.state_dict(), atol=2e-5)
    assert_measures(evaluations[-1], "eval_", expected.model, shards, "eval")
    tokens = read_manifest(shards)["splits"]["train"]["tokens"]
    assert [entry["num_tokens"] for entry in steps(folder)] == [tokens * (i + 1) for i in range(STEPS)]


def assert_measures(entry, prefix, model, shards, split):
    """Losses of all and by source, and in an evaluation the number of trained tokens, are those of the documents."""
    with torch.no_grad():
        found = [(d[2], *document_loss(model, d)) for d in documents(shards, split)]
    names = {f"{prefix}loss": None} | {f"eval_{n}_loss" if prefix else f"loss_{n}": i for i, n in enumerate(SOURCES)}
    for metric, source in names.items():
        own = [(loss.item(), tokens) for kind, loss, tokens in found if source in (None, kind)]
        assert entry[metric] == pytest.approx(sum(x for x, _ in own) / sum(n for _, n in own), rel=2e-6), metric
    if prefix:
        assert entry["eval_tokens"] == sum(tokens for *_, tokens in found)


def test_two_groups_under_zero3(train, shards, tiny_model_dir):
    """With windows, whose layers differ, and the DFT loss; two evaluation rows in a batch."""
    rows = len(document_rows(shards, "train"))
    options = {"loss_type": "dft", "gradient_accumulation_steps": (rows + 2) // 2, "per_device_eval_batch_size": 2}
    folder, _ = train("run", "cpu_zero3", 4, "gemma3", eval_strategy="epoch", sample_prompts=0, **options)
    base = load(tiny_model_dir("gemma3"))
    expected = train_plainly(base, shards, STEPS, adamw, losses=dynamic)
    assert_equal_training(steps(folder), expected, loss=5e-6, norm=5e-5)
    assert_equal_weights(load(folder).state_dict(), expected.model.state_dict(), atol=2e-5)
    last = [entry for entry in history(folder) if "eval_loss" in entry][-1]
    assert_measures(last, "eval_", expected.model, shards, "eval")


def test_adapters_without_deepspeed(train, shards, tiny_model_dir):
    rows = len(document_rows(shards, "train"))
    folder, _ = train("run", "cpu_single", gradient_accumulation_steps=rows + 1, **LORA, **NOT_SHARDED)
    base = tiny_model_dir("llama")
    expected = train_plainly(adapted(base), shards, STEPS, adamw)
    assert_equal_training(steps(folder), expected, loss=5e-6, norm=5e-5)
    trained = adapters(PeftModel.from_pretrained(load(base), folder))
    assert_equal_weights(trained, adapters(expected.model), atol=2e-5)


EACH_STEP = {"max_steps": 5, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 100}


def test_a_stopped_run_goes_on_bit_for_bit(train, many):
    """With NEFTune, whose random numbers differ from part to part."""
    options = {**EACH_STEP, **NOT_SHARDED, "data": str(many), "neftune_noise_alpha": 5.0, "eval_strategy": "no"}
    twin, _ = train("twin", "cpu_single", **options)
    train("cut", "cpu_single", stop_at=3, **options)
    cut, said = train("cut", "cpu_single", **options)
    assert "(step 3)" in said
    assert values(twin) == values(cut) and len(values(twin)) == 5
    for name, weight in load(twin).state_dict().items():
        assert torch.equal(weight, load(cut).state_dict()[name]), name


def values(folder):
    return [(entry["step"], entry["loss"], entry["grad_norm"], entry["learning_rate"]) for entry in steps(folder)]


def test_another_number_of_ranks_to_a_row(train, many):
    """Begun with whole rows, gone on with parts: the rows of a step, and so their losses, are those of the twin."""
    options = {**EACH_STEP, **NOT_SHARDED, "data": str(many), "eval_strategy": "no"}
    twin, _ = train("twin", "cpu_single", sequence_parallel=1, **options)
    train("changed", "cpu_single", stop_at=2, sequence_parallel=1, **options)
    changed, said = train("changed", "cpu_single", **options)
    assert "here are 1 group(s) of 2 processes: gradient_accumulation_steps is 4 instead of 2" in said
    assert [v[:2] for v in values(changed)] == [
        (step, pytest.approx(loss, rel=2e-6)) for step, loss, *_ in values(twin)
    ]
    norms = [entry["grad_norm"] for entry in steps(twin)]
    assert [entry["grad_norm"] for entry in steps(changed)] == pytest.approx(norms, rel=2e-5)


def test_documents_of_a_bad_step_are_described_once_and_whole(worlds, tiny_tokenizer, tiny_model_dir, tmp_path):
    shards = make_poisoned_shards(tmp_path, tiny_tokenizer.name_or_path)
    model = poison(tiny_model_dir("llama"), shards, tmp_path / "model")
    rows = document_rows(shards, "train")
    options = {"data": str(shards), "model_name_or_path": str(model), "output_dir": str(tmp_path / "run")}
    more = {"max_steps": 1, "gradient_accumulation_steps": len(rows), "sequence_parallel": 2, **NOT_SHARDED}
    codes = worlds.run("cpu_single", run_config(tmp_path / "run.yaml", **options, **more), tmp_path / "log")
    assert set(codes) == {2} and "stopped before the update of step 1" in (tmp_path / "log").read_text()
    described = json.loads((tmp_path / "run/bad_steps/step-1.json").read_text())["rows"]
    assert [row["row"] for row in described] == list(range(len(rows)))
    whole = load(model)
    for row, expected in zip(described, rows, strict=True):
        assert [d["tokens"] for d in row["documents"]] == [len(ids) for ids, _, _ in expected]
        for got, document in zip(row["documents"], expected, strict=True):
            loss, trained = document_loss(whole, document)
            assert got["trained_tokens"] == trained
            if got["source"] == "clean":
                assert got["loss"] == pytest.approx(loss.item() / trained, rel=2e-6)
