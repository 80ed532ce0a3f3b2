"""What a run keeps in run.json at its end: what it measured, and the estimate of its memory next to it."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import ClassVar

import pytest
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.support.in_process import train_here
from tests.support.training import make_shards
from train.memory import after_run
from train.memory.skeleton import NotTraced


class Tracker(TrainerCallback):
    """Stands in for W&B."""

    seen: ClassVar[list[dict]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


@pytest.fixture(scope="module")
def options(tmp_path_factory, tiny_tokenizer, tiny_model_dir):
    folder = tmp_path_factory.mktemp("estimated")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30})
    return {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama")), "max_steps": 2}


def record(folder):
    return json.loads((folder / "run" / "run.json").read_text())


def test_the_estimate_stands_next_to_the_peak(options, estimate_of_a_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(after_run, "estimated", estimate_of_a_run)
    monkeypatch.setattr("train.loop.setup.ReportPage", Tracker)
    grows = itertools.count(1)  # the test's own process may have taken more before
    monkeypatch.setattr("train.loop.metrics.memory_peak_gib", lambda device: float(next(grows)))
    logged = train_here(tmp_path, **options)
    found = record(tmp_path)["measured"]
    taken = found["memory_peak_gib"] - found["memory_before_gib"]
    assert 1 == found["memory_before_gib"] < found["memory_peak_gib"] >= logged[-1]["memory_peak_gib"]
    assert 0 < found["memory_estimated_gib"] < 0.1  # a model of a few thousand weights
    assert found["memory_estimate_ratio"] == pytest.approx(found["memory_estimated_gib"] / max(taken, 1e-9))
    assert found["device"] == "cpu"
    assert (found["sharding"], found["processes"], found["seq_len"]) == ("one process", 1, 256)
    assert found["tokens_per_second_per_gpu"] == pytest.approx(
        sorted(entry["tokens_per_second_per_gpu"] for entry in logged)[len(logged) // 2], rel=0.9
    )
    assert {name: found[name] for name in Tracker.seen[-1]} == Tracker.seen[-1]
    assert "GiB estimated (ratio " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotTraced("its layers carry a state"), "not estimated: its layers carry a state"),
        (RuntimeError(), "not estimated: RuntimeError"),
    ],
)
def test_an_estimate_that_fails_is_a_line(error, words, options, estimate_of_a_run, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(after_run, "estimated", estimate_of_a_run)
    monkeypatch.setattr("train.memory.preflight_page.make_fit", fail)
    train_here(tmp_path, **options)  # ends with 0
    assert words in capsys.readouterr().out
    kept = record(tmp_path)["measured"]
    assert kept["memory_peak_gib"] > 0 and "memory_estimated_gib" not in kept
    train_here(tmp_path, **options)  # finished before
    assert record(tmp_path)["measured"] == kept


def test_a_record_that_cannot_be_written_is_a_warning(options, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError("the disk is full")

    monkeypatch.setattr("train.run.run_record.keep_measured", fail)
    train_here(tmp_path, **options)
    assert "what was measured is not kept in run.json: OSError: the disk is full" in capsys.readouterr().err


def test_a_start_without_steps_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(after_run.log, "info", said.append)
    trainer = SimpleNamespace(stop=None, is_world_process_zero=lambda: True, meter=SimpleNamespace(memory=0.0))
    after_run.keep(trainer, None, None, 0.0)
    assert said == ["memory: not measured: this start had no step left to log"]


def test_layers_that_take_minutes_are_not_traced(estimate_of_a_run, tiny_model_dir, monkeypatch):
    said = []
    monkeypatch.setattr(after_run.log, "info", said.append)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("lfm2"))
    assert estimate_of_a_run(SimpleNamespace(model=model), None, None, 1.0) == {}
    assert "not estimated here: layers that carry a state" in said[0]
