"""A skipped step under DeepSpeed: on both processes alike, and without a trace in weights and optimizer."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.poisoned_documents import make_poisoned_shards, poison
from tests.support.training import history, run_config


@pytest.mark.parametrize(("launch", "architecture"), [("cpu_zero3", "llama"), ("cpu_zero2_ep", "qwen3_moe")])
def test_a_step_that_is_not_a_number_is_skipped_by_all(
    launch, architecture, worlds, tiny_tokenizer, tiny_model_dir, tmp_path
):
    shards = make_poisoned_shards(tmp_path, tiny_tokenizer.name_or_path)
    config = run_config(
        tmp_path / "run.yaml",
        data=str(shards),
        model_name_or_path=str(poison(tiny_model_dir(architecture), shards, tmp_path / "model")),
        output_dir=str(tmp_path / "run"),
        num_train_epochs=1,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=1,
        on_bad_step="skip",
    )
    output = worlds.train(launch, config, tmp_path / "log")
    steps = history(tmp_path / "run")[-1]["step"]
    assert f"step {steps} skipped: the " in output and "2 process(es), DEEPSPEED" in output
    assert [h["step"] for h in history(tmp_path / "run") if "loss" in h] == list(range(1, steps))
    described = json.loads((tmp_path / f"run/bad_steps/step-{steps}.json").read_text())
    found = [d for row in described["rows"] for d in row["documents"]]
    assert [d["source"] for d in found if d["loss"] == "nan"] == ["poison"]
    before, after = (tmp_path / f"run/checkpoint-{step}" for step in (steps - 1, steps))
    assert_equal(load_file(before / "model.safetensors"), load_file(after / "model.safetensors"))
    files = sorted(before.glob("global_step*/*optim_states.pt"))
    assert len(files) == 2
    for file in files:
        other = after / f"global_step{steps}" / file.name
        states = [torch.load(path, weights_only=False)["optimizer_state_dict"] for path in (file, other)]
        assert_equal(*states)
    weights = [load_file(folder / "model.safetensors")["lm_head.weight"] for folder in (tmp_path / "model", after)]
    assert not torch.equal(*weights)  # the steps before did train


def assert_equal(a, b):
    """Tensors in nested containers, NaN equal to NaN; counters of skipped steps aside."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"overflow"}:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
