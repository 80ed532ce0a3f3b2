"""Sharded checkpoints of FSDP2 on CPU processes (tests/support/fsdp_on_cpu.py): cut, failed, and in other worlds.

Every second step is saved. The model has dropout, so that a wrong random state shows, but where worlds change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import history, make_shards, run_config
from train.checkpoint import folders
from train.checkpoint.shard_files import read_model

STEPS = 8
FULL = {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fsdp2_checkpoints")


@pytest.fixture(scope="module")
def train(folder, worlds, tiny_tokenizer, tiny_model_dir) -> Callable[..., str]:
    """Factory: one attempt of a run by name; what it says."""
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30, "long": [5] * 6}, eval_fraction=0.1)

    def attempt(name: str, processes: int = 2, dropout: float = 0.2, code: int = 0, fsdp=None, **more) -> str:
        attempts = ("stop_at", "fault", "faults")
        options = {key: more.pop(key) for key in list(more) if key not in attempts}
        settings = {
            "data": str(shards),
            "model_name_or_path": str(tiny_model_dir("llama", attention_dropout=dropout)),
            "output_dir": str(folder / name),
            "max_steps": STEPS,
            "gradient_accumulation_steps": 2,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.1,
            "save_strategy": "steps",
            "save_steps": 2,
            "disable_tqdm": True,
            "expected_world_size": processes,
            "expected_distributed_type": "FSDP",
            **options,
        }
        config, log = run_config(folder / f"{name}.yaml", **settings), folder / f"{name}.log"
        codes = worlds.run("fsdp2", config, log, processes=processes, environment=fsdp or {}, **more)
        said = log.read_text()
        assert set(codes) == {code}, said[-6000:]
        assert code or f"sft: {processes} process(es), FSDP" in said
        return said

    return attempt


@pytest.fixture(scope="module")
def twin(folder, train) -> Path:
    train("twin")
    return folder / "twin"


def assert_equal(run_dir: Path, twin: Path) -> None:
    """The same steps and the same weights, bit for bit."""
    names = ("step", "loss", "grad_norm", "learning_rate", "num_tokens")
    got, wanted = ([{n: h[n] for n in names} for h in history(d) if "loss" in h] for d in (run_dir, twin))
    assert got == wanted and len(got) == STEPS
    weights, expected = (load_file(d / "model.safetensors") for d in (run_dir, twin))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def assert_same_states(run_dir: Path, twin: Path, step: int) -> None:
    """Every byte of the states; DCP's `.metadata` holds a number of its own."""
    got, wanted = (folders.read(d / f"checkpoint-{step}").files for d in (run_dir, twin))
    assert got.keys() == wanted.keys()
    states = [name for name in wanted if name.endswith((".distcp", ".pth", "scheduler.pt"))]
    assert len(states) == 2 * 2 + 2 + 1
    assert {name: got[name] for name in states} == {name: wanted[name] for name in states}


def test_a_run_cut_by_a_signal_and_in_the_middle_of_a_write_is_its_twin(folder, train, twin):
    train("cut", stop_at=3)
    said = train("cut", fault=[1, 3, "die", "write"], code=1)  # the model's part of checkpoint-6
    assert "(step 3)" in said and "checkpoint-4: training waited" in said
    assert [c.step for c in folders.find_checkpoints(folder / "cut")] == [2, 3, 4]
    assert "(step 4)" in train("cut")
    assert_equal(folder / "cut", twin)
    assert_same_states(folder / "cut", twin, STEPS)
    assert not list((folder / "cut").glob(".saving-*"))


def test_written_at_once_is_what_is_written_in_the_background(folder, train, twin):
    said = train("at_once", save_in_background=False)
    assert "too little memory" not in said and "memory for copies" not in said
    assert "memory for copies" in (folder / "twin.log").read_text()
    for step in (4, STEPS):
        assert_same_states(folder / "at_once", twin, step)


def test_a_save_that_fails_on_one_process_costs_itself(folder, train, twin):
    """In the plan, which all make together, in the background, in the middle of a file that the kernel cuts, and before
    the plan, where the others wait for its."""
    said = train("failing", faults=[[1, 1, "full", "plan"], [1, 2, "limit", "write"], [0, 3, "full", "states"]])
    for step, reason in ((2, "No space left on device"), (4, "File too large"), (6, "No space left on device")):
        [line] = [line for line in said.splitlines() if f"checkpoint-{step} IS NOT SAVED: " in line]
        assert reason in line and "Training goes on" in line
    assert [c.step for c in folders.find_checkpoints(folder / "failing")] == [8]
    assert_equal(folder / "failing", twin)
    assert_same_states(folder / "failing", twin, STEPS)


def test_whole_states_and_shards_are_not_mixed(folder, train, twin):
    train("whole", fsdp=FULL, stop_at=3)
    said = train("whole", code=2)
    assert "was written with FSDP and FULL_STATE_DICT, this launch has FSDP and SHARDED_STATE_DICT" in said
    train("whole", fsdp=FULL)
    assert_equal(folder / "whole", twin)


def test_other_worlds_go_on_as_the_twin(folder, train):
    train("steady", dropout=0.0)
    train("worlds", dropout=0.0, stop_at=3)
    train("worlds", dropout=0.0, processes=4, stop_at=6)
    said = train("worlds", dropout=0.0, processes=1)
    assert "gradient_accumulation_steps is 4 instead of 2" in said
    got, wanted = ([h for h in history(folder / name) if "loss" in h] for name in ("worlds", "steady"))
    assert [h["step"] for h in got] == [h["step"] for h in wanted] == list(range(1, STEPS + 1))
    for ours, twins in zip(got, wanted, strict=True):
        assert ours["loss"] == pytest.approx(twins["loss"], abs=1e-6)
        assert ours["grad_norm"] == pytest.approx(twins["grad_norm"], rel=1e-5)
        assert (ours["learning_rate"], ours["num_tokens"]) == (twins["learning_rate"], twins["num_tokens"])
    assert not list((folder / "worlds").glob(".universal-*"))


def test_the_best_checkpoint_is_loaded_at_the_end(folder, train):
    """The loss falls and the best is the highest: the first one."""
    best = {"metric_for_best_model": "eval_loss", "greater_is_better": True, "load_best_model_at_end": True}
    often = {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": False, "sample_prompts": 0}
    train("best", max_steps=4, **best, **often)
    state = json.loads((folder / "best" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / "best" / "checkpoint-2")
    states, final = read_model(folder / "best" / "checkpoint-2"), load_file(folder / "best" / "model.safetensors")
    assert states.keys() == final.keys() and all(torch.equal(states[name], final[name]) for name in final)
