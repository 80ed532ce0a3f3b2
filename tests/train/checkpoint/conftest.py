"""Runs that are saved, stopped and resumed: their configs, an uninterrupted twin, and actions in a step."""

from __future__ import annotations

import logging

import pytest

from tests.support.saving_runs import STEPS, run_here, single_config
from tests.support.training import make_shards
from train.checkpoint import saving
from train.run import log


@pytest.fixture(scope="session")
def make_run(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    """Factory of run configs: dropout, so that a wrong random state shows; steps logged and saved out of time."""
    folder = tmp_path_factory.mktemp("saving")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30, "long": [5] * 6}, eval_fraction=0.1)

    def make(name: str, **options):
        settings = {
            "data": str(shards),
            "model_name_or_path": str(tiny_model_dir("llama", attention_dropout=0.2)),
            "output_dir": str(folder / name),
            "max_steps": STEPS,
            "gradient_accumulation_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 3,
        }
        return single_config(folder / f"{name}.yaml", **{**settings, **options}), folder / name

    return make


@pytest.fixture(scope="session")
def uninterrupted(make_run):
    config, run_dir = make_run("whole")
    assert run_here(config) == 0
    return run_dir


@pytest.fixture
def at_step(monkeypatch):
    """Factory: do something in a step."""

    def arrange(step: int, action):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                action()

        monkeypatch.setattr(saving.SavingCallback, "on_step_begin", on_step_begin)

    return arrange


class Kept(logging.Handler):
    """Keeps the lines in their order, whatever stream they go to."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(log.line(record))

    def take(self):
        """The lines since the last call."""
        taken, self.lines = self.lines, []
        return "\n".join(taken)


@pytest.fixture
def said():
    """A function that gives what the run has said since its last call."""
    log.set_up()
    kept, logger = Kept(), logging.getLogger("train")
    logger.addHandler(kept)
    yield kept.take
    logger.removeHandler(kept)
