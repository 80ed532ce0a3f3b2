"""What a run shows as it trains."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState

from train.loop import console

STATE = TrainerState(global_step=120, max_steps=1870, is_world_process_zero=True, is_local_process_zero=True)
STEP = {"loss": 1.43218, "loss_ko": 1.9, "loss_의학": 1.2, "grad_norm": 0.8312, "learning_rate": 9.6e-6}
STEP |= {"tokens_per_second_per_gpu": 41237.0, "mfu": 0.4712, "hours_left": 2.2166, "data_wait_share": 0.01}
EVALUATED = {"eval_loss": 1.431, "eval_loss_change": -0.52, "eval_token_accuracy": 0.61, "eval_ko_loss": 1.9}
EVALUATED |= {"eval_ko_loss_change": 0.1, "eval_ko_token_accuracy": 0.5, "eval_의학_loss": 1.2}
SOURCES = ["ko", "의학"]


def lines(logs, sources=SOURCES, device="cuda"):
    return list(console.described(logs, STATE, sources, device))


def test_a_step():
    assert lines(STEP) == [
        "step 120/1,870  loss 1.432 (ko 1.90, 의학 1.20)  norm 0.831  lr 9.6e-06  41.2k tok/s/GPU  MFU 47 %  "
        "2 h 13 min left"
    ]
    few = {"loss": 0.5, "learning_rate": 1e-5, "tokens_per_second_per_gpu": 950.0}
    assert lines(few, ["one"], "cpu") == ["step 120/1,870  loss 0.500  lr 1e-05  950 tok/s/process"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"skipped_steps": 2}, "2 steps skipped"),
        ({"slowest_rank": 3, "slowest_host": "gpu07", "slowdown": 1.3}, "rank 3 on gpu07 1.3 times as slow"),
        ({"slowest_rank": 3, "slowest_host": "gpu07", "slowdown": 1.02}, None),
        ({"data_wait_share": 0.12}, "12 % waiting for data"),
        ({"save_stall_seconds": 5.71}, "waited 5.7 s for a checkpoint"),
        ({"save_stall_seconds": 0.2}, None),
    ],
)
def test_what_is_not_as_it_should_be_is_remarked(more, said):
    [line] = lines({**STEP, **more})
    assert said in line if said else line == lines(STEP)[0]


def test_an_evaluation_is_a_table_whose_columns_stand_under_each_other():
    title, *rows = lines(EVALUATED)
    assert title == "evaluation at step 120: loss, change against the base model, token accuracy"
    assert rows == [
        "  all   1.4310  -0.5200  0.6100",
        "  ko    1.9000  +0.1000  0.5000",
        "  의학  1.2000        -  0.0000",
    ]
    assert lines({"eval_loss": 2.0}, ["one"])[1:] == ["  all  2.0000        -  0.0000"]


def test_the_end_and_what_nobody_looks_for():
    assert lines({"train_runtime": 8000.0, "train_loss": 1.5}) == ["trained for 2 h 13 min, mean loss 1.500"]
    assert lines({"epoch": 1.0}) == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(45, "45 s"), (89.6, "90 s"), (100, "2 min"), (3599, "1 h 0 min"), (8000, "2 h 13 min"), (200_000, "2 d 7 h")],
)
def test_durations(seconds, said):
    assert console.duration(seconds) == said


def trainer(quiet, first=True):
    """As much of a trainer as is asked."""
    callbacks = [PrinterCallback(), ProgressCallback()]

    def remove(kind):
        callbacks[:] = [callback for callback in callbacks if type(callback) is not kind]

    return SimpleNamespace(
        callbacks=callbacks,
        remove_callback=remove,
        add_callback=callbacks.append,
        is_world_process_zero=lambda: first,
        args=SimpleNamespace(disable_tqdm=quiet, device=torch.device("cpu")),
    )


def test_one_process_shows_lines_or_a_bar():
    found = {(quiet, first): trainer(quiet, first) for quiet in (True, False) for first in (True, False)}
    for made in found.values():
        console.install(made, SOURCES)
    kinds = {case: [type(callback) for callback in made.callbacks] for case, made in found.items()}
    assert kinds == {(True, True): [console.Lines], (False, True): [console.Bar], (True, False): [], (False, False): []}


def test_a_bar_shows_steps_beside_it_and_evaluations_above(monkeypatch, caplog):
    shown = io.StringIO()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("sys.stdout", shown)  # what is written above a bar
    args, control, bar = SimpleNamespace(device=torch.device("cpu")), TrainerControl(), console.Bar(SOURCES)
    with caplog.at_level(logging.INFO, "train"):
        bar.on_log(args, STATE, control, logs=EVALUATED)  # the base model, before the first step
        assert "all   1.4310" in caplog.text
        bar.on_train_begin(args, STATE, control)
        bar.on_log(args, STATE, control, logs=dict(STEP))
        bar.on_log(args, STATE, control, logs=dict(EVALUATED))
        bar.on_train_end(args, STATE, control)
    assert "loss 1.432 (ko 1.90, 의학 1.20)" in shown.getvalue() and "left" not in shown.getvalue()
    assert "evaluation at step 120" in shown.getvalue()
