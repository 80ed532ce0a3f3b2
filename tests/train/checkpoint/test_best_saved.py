"""The best checkpoint is the best of those that are there, also where evaluations come more often than saves."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.support.saving_runs import run_here
from train.checkpoint.best_saved import best_saved
from train.config.run_config import build_sft_config, load_run_config

LOSSES = {1: 5.0, 2: 4.0, 3: 1.0, 4: 3.0, 6: 2.0, 8: float("nan")}


@pytest.mark.parametrize(
    ("saved", "now", "greater", "best"),
    [
        ((2, 4), 6, False, 6),  # better than 4, though not than the evaluation at 3
        ((2, 4), 7, False, 4),  # saved without an evaluation, as by a signal
        ((2, 4), 6, True, 2),
        ((2, 4, 6), 8, False, 6),
        ((), 7, False, None),
    ],
)
def test_of_those_that_are_there(saved, now, greater, best, tmp_path):
    for step in saved:
        (tmp_path / f"checkpoint-{step}").mkdir()
    args = SimpleNamespace(metric_for_best_model="loss", greater_is_better=greater)
    log = [{"step": step, "eval_loss": loss} for step, loss in LOSSES.items()] + [{"step": 6, "loss": 0.1}]
    state = SimpleNamespace(global_step=now, log_history=log, best_model_checkpoint="before")
    assert best_saved(args, state, tmp_path) == (str(tmp_path / f"checkpoint-{best}") if best else "before")


@pytest.mark.slow
@pytest.mark.parametrize("load", [False, True])
def test_a_run_that_evaluates_more_often_than_it_saves(load, make_run):
    """The loss falls, so that the worst evaluation, asked for as the best, is one without a checkpoint."""
    options = {"metric_for_best_model": "eval_loss", "greater_is_better": True, "load_best_model_at_end": load}
    more = {"save_steps": 3, "save_total_limit": 1, "max_steps": 7}
    config, run_dir = make_run(f"rare-{load}", **options, **more, eval_strategy="steps", eval_steps=1, sample_prompts=0)
    assert run_here(config) == 0
    state = json.loads((run_dir / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry}
    assert state["best_global_step"] == max(losses.keys() - {0}, key=losses.get) == 1
    best = max((3, 6, 7), key=losses.get)
    assert state["best_model_checkpoint"] == str(run_dir / f"checkpoint-{best}")
    assert sorted(path.name for path in run_dir.glob("checkpoint-*")) == sorted({f"checkpoint-{best}", "checkpoint-7"})


@pytest.mark.parametrize("name", ["loss_change", "eval_loss_change", "eval_short_loss_change", "loss"])
def test_less_of_a_loss_is_better_by_any_of_its_names(name, make_run):
    config, _ = make_run("direction")
    args = build_sft_config(load_run_config(["--config", str(config), "--metric_for_best_model", name]))
    assert args.greater_is_better is False
