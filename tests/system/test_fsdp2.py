"""FSDP2 on two CPU processes: equal to an independent loop, also when stopped, and exported from shards.

The launch file is the shipped one; see tests/support/fsdp_on_cpu.py for what lets FSDP run without GPUs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from tests.support.export_runs import run_export
from tests.support.in_process import assert_equal_training, assert_equal_weights, train_plainly
from tests.support.references import LEARNING_RATE, LORA, SEED, STEPS, adamw, adapted, adapters, load
from tests.support.training import history, make_shards, run_config
from tests.support.worlds import Worlds
from train.checkpoint import folders
from train.checkpoint.shard_files import MODEL
from train.serving.adapters import MERGED

RUNS = {
    "full": ("llama", {"gradient_checkpointing": True}),
    "tied": ("qwen3", {}),
    "lora": ("llama", LORA),
    "parts": ("llama", {"sequence_parallel": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}),
    "half": ("llama", {"bf16": True}),
    "overflow": ("llama", {"fp16": True}),
    "stopped": ("llama", {"gradient_checkpointing": True}),
}
STOPPED = ("tied", "lora", "overflow", "stopped")


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    answers = {"short": [1] * 12, "long": [6, 6]}  # three rows, and a filler row for two processes with two steps
    return make_shards(tmp_path_factory.mktemp("fsdp"), tiny_tokenizer.name_or_path, answers)


@pytest.fixture(scope="module")
def ran(shards, worlds, tiny_model_dir, tmp_path_factory) -> Path:
    """The folder with the runs; one world."""
    folder = tmp_path_factory.mktemp("fsdp2")
    plan = {"num_train_epochs": STEPS, "gradient_accumulation_steps": 2, "expected_distributed_type": "FSDP"}
    plan |= {"learning_rate": LEARNING_RATE, "seed": SEED, "disable_tqdm": True, "expected_world_size": 2}
    arguments = []
    for name, (architecture, options) in RUNS.items():
        paths = {"data": shards, "model_name_or_path": tiny_model_dir(architecture), "output_dir": folder / name}
        named = {key: str(path) for key, path in paths.items()}
        config = run_config(folder / f"{name}.yaml", **{**plan, **named, **options})
        arguments.append(f"{config}@3" if name in STOPPED else str(config))
    train_all(worlds, arguments, folder / "log")
    return folder


def train_all(worlds: Worlds, arguments: list[str], log: Path) -> None:
    _, said = worlds.run_module("fsdp2", "tests.support.fsdp_runs", arguments, log)
    last = arguments[-1].partition("@")[0]
    assert said.count(f"rank 0 has run {last}") == said.count(f"rank 1 has run {last}") == 2, said[-6000:]
    assert (
        said.count("2 process(es), FSDP")
        == said.count("packed documents are isolated")
        == len(arguments) + len(STOPPED)
    )


def steps(folder: Path) -> list[dict]:
    return [entry for entry in history(folder) if "loss" in entry]


@pytest.mark.parametrize("name", ["full", "tied", "lora", "parts"])
def test_equals_the_plain_loop(name, ran, shards, tiny_model_dir):
    base = tiny_model_dir(RUNS[name][0])
    model = adapted(base) if name == "lora" else load(base)
    expected = train_plainly(model, shards, STEPS, make_optimizer=adamw)
    assert [entry["step"] for entry in steps(ran / name)] == list(range(1, STEPS + 1))
    assert_equal_training(steps(ran / name), expected, loss=5e-6, norm=5e-5)
    if name == "lora":
        trained, reference = adapters(PeftModel.from_pretrained(load(base), ran / name)), adapters(expected.model)
    else:
        trained, reference = load(ran / name).state_dict(), expected.model.state_dict()
    assert_equal_weights(trained, reference, atol=2e-5)


def test_a_stopped_run_goes_on_bit_for_bit(ran):
    assert [entry["step"] for entry in steps(ran / "stopped")] == list(range(1, STEPS + 1))
    for one, other in zip(steps(ran / "full"), steps(ran / "stopped"), strict=True):
        assert (one["loss"], one["grad_norm"], one["learning_rate"]) == (
            other["loss"],
            other["grad_norm"],
            other["learning_rate"],
        )
    for name, weight in load(ran / "full").state_dict().items():
        assert torch.equal(weight, load(ran / "stopped").state_dict()[name])


def test_losses_are_not_rounded_to_half_precision(ran):
    """accelerate's own policy of mixed precision casts them with all that the model returns: by up to 2e-3 here."""
    for half, full in zip(steps(ran / "half"), steps(ran / "full"), strict=True):
        assert half["loss"] == pytest.approx(full["loss"], rel=3e-4)
        assert half["grad_norm"] == pytest.approx(full["grad_norm"], rel=2e-2)


def test_an_overflow_in_one_ranks_shard_is_a_step_that_no_rank_takes(ran, shards, tiny_model_dir):
    """In fp16: the step is made up for with a smaller scale, which a resume knows."""
    expected = train_plainly(load(tiny_model_dir("llama")), shards, STEPS, make_optimizer=adamw)
    taken = [expected.losses[i] for i in (0, 1, 1, 2, 3)]
    assert [entry["loss"] for entry in steps(ran / "overflow")] == pytest.approx(taken, rel=3e-4)
    said = re.findall(r"rank \d scales step (\d) by (\d+)", (ran / "log").read_text())
    assert {(int(step), int(scale)) for step, scale in said} == {
        (step, 65536 if step < 3 else 32768) for step in range(1, STEPS + 1)
    }


def test_gradients_stay_sharded_between_micro_batches(ran):
    said = re.findall(r"rank (\d) holds (\d+) whole gradients", (ran / "log").read_text())
    micro_batches = sum(options.get("gradient_accumulation_steps", 2) for _, options in RUNS.values())
    assert {rank for rank, _ in said} == {"0", "1"} and len(said) == 2 * STEPS * micro_batches
    assert {number for _, number in said} == {"0"}


@pytest.mark.parametrize("name", ["tied", "lora", "stopped"])
def test_a_checkpoint_holds_what_an_export_needs(name, ran, tmp_path):
    """The model lies there in shards alone; an adapter whole as well."""
    checkpoint = ran / name / "checkpoint-3"
    assert folders.read(checkpoint).extra["state_dict_type"] == "SHARDED_STATE_DICT"
    assert not list(checkpoint.glob("model*.safetensors")) and len(list(checkpoint.glob("*/__*.distcp"))) == 4
    run_export(checkpoint, tmp_path / "export")
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["step"] == 3 and record["proof"]["difference"] < 1e-5
    assert record["weights"] == (MERGED if name == "lora" else "rebuilt from FSDP2 shards")
    assert not any(name.startswith("optimizer_0/") for name in record["source_digests"])
    assert any(name.startswith("pytorch_model_fsdp_0/") for name in record["source_digests"])
    assert ("lm_head.weight" in load_file(tmp_path / "export" / "model.safetensors")) == (name != "tied")


def test_a_tied_weight_lies_once_in_the_shards(ran):
    """It is read under both its names, as the resume has shown."""
    places = FileSystemReader(ran / "tied" / "checkpoint-3" / MODEL).read_metadata().storage_data
    by_name: dict[str, set[tuple[str, int]]] = {}
    for index, place in places.items():
        by_name.setdefault(index.fqn, set()).add((place.relative_path, place.offset))
    assert by_name["model.lm_head.weight"] == by_name["model.model.embed_tokens.weight"]
    assert len(by_name["model.lm_head.weight"]) == 2


@pytest.mark.parametrize("name", ["full", "tied", "lora"])
def test_a_run_is_exported_as_it_was_trained(name, ran, tmp_path):
    run_export(ran / name, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "export.json").read_text())["proof"]["run"]
