"""Another number of processes, another ZeRO stage: the same losses as the uninterrupted twin, each row used once."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.export_runs import run_export
from tests.support.training import history, make_shards, run_config
from tests.support.worlds import Worlds
from train.checkpoint import folders
from train.tracing.documents import Trace
from train.tracing.run_facts import read_facts

STEPS = 12
STEPS_PER_EPOCH = 4  # 15 rows and one of a filler, 4 in a step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="module")
def shards(folder, tiny_tokenizer):
    """15 rows of several documents: the last step of an epoch has a filler row."""
    return make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 60, "long": [6] * 20})


@pytest.fixture(scope="module")
def plan(folder, shards, tiny_model_dir):
    """Factory of attempts, all with the same options but for the launch."""

    def attempt(name: str, launch: str, processes: int, stop_at: int | None = None, **options):
        file = folder / f"{len(list(folder.glob('*.yaml')))}.yaml"
        settings = {
            "data": str(shards),
            "model_name_or_path": str(tiny_model_dir("llama")),
            "output_dir": str(folder / name),
            "max_steps": STEPS,
            "gradient_accumulation_steps": 2,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.1,
            "save_strategy": "steps",
            "save_steps": 100,
            "expected_world_size": processes,
            **options,
        }
        rows = folder / f"{name}-rows"
        rows.mkdir(exist_ok=True)
        log = str(folder / f"{name}.log")
        flags = ["--config", str(run_config(file, **settings))]
        return {"accelerate": launch, "processes": processes, "flags": flags, "log": log, "rows": str(rows)} | (
            {"stop_at": stop_at} if stop_at else {}
        )

    return attempt


def run(worlds: Worlds, attempts: list[dict]) -> None:
    for attempt in attempts:
        codes = worlds.attempt(attempt)
        assert set(codes) == {attempt.get("code", 0)}, Path(attempt["log"]).read_text()[-6000:]


@pytest.fixture(scope="module")
def runs(folder, plan, worlds):
    """The twin on two processes, and runs that change in steps 4 and 9."""
    run(
        worlds,
        [
            {**plan("twin", "cpu_zero2", 2), "estimate": True},
            # Cut by a preemption, a process that dies, and a preemption.
            plan("cut", "cpu_zero2", 2, 3, save_steps=2),
            {**plan("cut", "cpu_zero2", 2, save_steps=2), "fault": [1, 7, "die"], "code": 1},
            plan("cut", "cpu_zero2", 2, 10, save_steps=2),
            plan("cut", "cpu_zero2", 2, save_steps=2),
            *(plan("two", "cpu_zero2", 2, 4), plan("two", "cpu_zero2", 4, 9), plan("two", "cpu_zero2", 1)),
            *(plan("three", "cpu_zero3", 2, 4), plan("three", "cpu_zero3", 4, 9), plan("three", "cpu_zero3", 1)),
            *(plan("stages", "cpu_zero3", 2, 4), plan("stages", "cpu_zero1", 2, 9), plan("stages", "cpu_zero3", 1)),
        ],
    )
    return folder


@pytest.fixture(scope="module")
def anew(folder, plan, worlds):
    """Runs whose optimizer begins anew, on fewer processes and on more; the first is refused before."""
    eight = {"optim": "paged_adamw_8bit"}
    run(
        worlds,
        [
            plan("eight", "cpu_zero2", 2, 4, **eight),
            {**plan("eight", "cpu_zero2", 1, **eight), "code": 2},
            plan("eight", "cpu_zero2", 1, reinitialize_optimizer=True, **eight),
            plan("anew3", "cpu_zero3", 2, 4),
            plan("anew3", "cpu_zero3", 4, reinitialize_optimizer=True),
        ],
    )
    return folder


def test_states_that_cannot_be_rearranged_are_refused_or_begin_anew(anew, runs):
    log = (anew / "eight.log").read_text()
    assert "with paged_adamw_8bit, this world has 1: DeepSpeed can only rearrange the states of adamw_torch" in log
    for name in ("eight", "anew3"):
        assert "reinitialize_optimizer: only weights are taken" in (anew / f"{name}.log").read_text()
        losses = {h["step"]: h["loss"] for h in history(anew / name) if "loss" in h}
        assert sorted(losses) == list(range(1, STEPS + 1))
        assert rows_by_step(anew, name) == rows_by_step(runs, "twin")
    twin = {h["step"]: h["loss"] for h in history(runs / "twin") if "loss" in h}
    losses = {h["step"]: h["loss"] for h in history(anew / "anew3") if "loss" in h}
    assert losses[5] == pytest.approx(twin[5], abs=1e-6)  # the weights are those of step 4
    assert losses[7] != pytest.approx(twin[7], abs=1e-6)  # the optimizer is not


def rows_by_step(folder: Path, name: str) -> dict[int, Counter]:
    steps: dict[int, Counter] = {}
    for file in (folder / f"{name}-rows").iterdir():
        for line in file.read_text().splitlines():
            step, row = line.split()
            steps.setdefault(int(step), Counter())[row] += 1
    return steps


@pytest.mark.parametrize("name", ["two", "three", "stages"])
def test_losses_and_rows_are_those_of_the_uninterrupted_twin(name, runs):
    got, wanted = ([h for h in history(runs / n) if "loss" in h] for n in (name, "twin"))
    assert [h["step"] for h in got] == [h["step"] for h in wanted] == list(range(1, STEPS + 1))
    for ours, twins in zip(got, wanted, strict=True):
        assert ours["loss"] == pytest.approx(twins["loss"], abs=1e-6), ours["step"]
        assert ours["grad_norm"] == pytest.approx(twins["grad_norm"], rel=1e-5)
        assert ours["learning_rate"] == twins["learning_rate"] and ours["num_tokens"] == twins["num_tokens"]
    assert rows_by_step(runs, name) == rows_by_step(runs, "twin")
    log = (runs / f"{name}.log").read_text()
    assert log.count("are rearranged for ") == 2
    worlds = [("2", "2"), ("2", "1")] if name == "stages" else [("2", "4"), ("4", "1")]
    assert re.findall(r"states of (\d+) process\(es\) are rearranged for ZeRO-\d and (\d+)", log) == worlds
    assert [log.count(f"sft: {n} process(es), DEEPSPEED") for n in (1, 2, 4)] == (
        [1, 2, 0] if name == "stages" else [1, 1, 1]
    )
    assert not list((runs / name).glob(".universal-*"))


@pytest.mark.parametrize("name", ["twin", "two"])
def test_a_trace_lists_the_rows_that_every_world_took(name, runs):
    """The run "two" goes from two processes to four and to one."""
    facts = read_facts(runs / name)
    assert name == "twin" or set(facts.world_sizes.values()) == {1, 2, 4}
    trace = Trace.open(facts)
    for step, rows in rows_by_step(runs, name).items():
        entry = trace.step(step)
        packed: dict[tuple[str, int], list[np.ndarray]] = {}
        for document in entry["documents"]:
            packed.setdefault((document["shard"], document["shard_row"]), []).append(document["ids"])
        whole = [np.concatenate(ids).astype(np.int64).tobytes() for ids in packed.values()]
        expected = Counter(hashlib.sha256(ids).hexdigest() for ids in whole)
        assert expected <= rows and (rows - expected).total() == entry["filler_rows"]


@pytest.mark.parametrize("launch", ["cpu_zero2", "cpu_zero3"])
def test_the_best_checkpoint_of_another_world_is_loaded_at_the_end(launch, folder, plan, worlds, tiny_tokenizer):
    """The loss falls and the best is the highest: the first one, by two processes."""
    answers = {"short": [1] * 30, "long": [5] * 6}
    shards = make_shards(folder / launch, tiny_tokenizer.name_or_path, answers, eval_fraction=0.1)
    best = {"metric_for_best_model": "eval_loss", "greater_is_better": True, "load_best_model_at_end": True}
    often = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 6, "sample_prompts": 0}
    options = {**best, **often, "eval_on_start": False, "data": str(shards)}
    name = f"best-{launch}"
    run(worlds, [plan(name, launch, 2, 3, **options), {**plan(name, launch, 1, **options), "converter": True}])
    log = (folder / f"{name}.log").read_text()
    assert [log.count(f"sft: {n} process(es), DEEPSPEED") for n in (1, 2)] == [1, 1]
    state = json.loads((folder / name / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / name / "checkpoint-2")
    got, wanted = (load_file(folder / name / n / "model.safetensors") for n in (".", "checkpoint-2"))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_checkpoint_of_zero1_is_exported_as_it_was_trained(runs, tmp_path):
    checkpoint = runs / "stages" / "checkpoint-9"
    assert folders.read(checkpoint).extra["zero_stage"] == 1
    run_export(checkpoint, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["proof"]["difference"] == 0


def test_a_run_cut_three_times_is_its_uninterrupted_twin_bit_for_bit(runs):
    got, wanted = (
        [(h["step"], h["loss"], h["grad_norm"], h["learning_rate"]) for h in history(runs / name) if "loss" in h]
        for name in ("cut", "twin")
    )
    assert got == wanted and len(got) == STEPS
    got, wanted = (load_file(runs / name / "model.safetensors") for name in ("cut", "twin"))
    assert got.keys() == wanted.keys() and all(torch.equal(got[name], wanted[name]) for name in wanted)
    log = (runs / "cut.log").read_text()
    resumed = [int(step) for step in re.findall(r"resuming from .* \(step (\d+)\)", log)]
    assert resumed in ([3, 6, 10], [3, 4, 10])  # the checkpoint of step 6 may have been under way in step 7
    assert log.count("2 process(es), DEEPSPEED") == 4


def test_a_run_of_two_processes_estimates_its_memory_at_its_end(runs):
    assert (runs / "twin.log").read_text().count("GiB estimated (ratio ") == 1


def test_each_row_is_used_once_in_an_epoch(runs):
    steps = rows_by_step(runs, "twin")
    for epoch in range(STEPS // STEPS_PER_EPOCH):
        first = epoch * STEPS_PER_EPOCH + 1
        used = sum((steps[step] for step in range(first, first + STEPS_PER_EPOCH)), Counter())
        assert len(used) == 16 and set(used.values()) == {1}


def test_deepspeed_still_needs_what_is_mended():
    """When one of these fails the installed DeepSpeed has mended it: take its work-around out (deepspeed_universal)."""
    from deepspeed.checkpoint import ds_to_universal
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    load = inspect.getsource(Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3)
    assert "self.optimizer.state[fp32_param]['step'] = state_step" in load  # one tensor for all
    assert '["param_groups"][0].items()' in load  # the first group's settings for all
    merge = inspect.getsource(ds_to_universal.merge_zero3_slices)
    assert "PARAM" not in merge and '"step"' not in merge  # what ZeRO-1 and 2 look for
