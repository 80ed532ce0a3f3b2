"""The page of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from train import report
from train.loop.report_page import ReportPage
from train.run_report import curves
from train.run_report.page import render
from train.run_report.run_files import read_run

HISTORY = [
    {"step": 0, "eval_loss": 3.0, "eval_ko_loss": 3.5, "eval_의학_loss": 2.5},
    {"step": 10, "loss": 2.0, "loss_ko": 2.5, "loss_의학": 1.5, "grad_norm": 1.0, "learning_rate": 1e-5, "mfu": 0.43},
    {"step": 20, "loss": 1.0, "loss_ko": 1.5, "loss_의학": 0.5, "grad_norm": float("inf"), "num_tokens": 12345},
    {"step": 20, "eval_loss": 1.25, "eval_loss_change": -1.75, "eval_ko_loss": 3.75, "eval_ko_loss_change": 0.25},
]
RECORD = {"data": "shards/mix", "model_name_or_path": "base", "manifest_sha256": "a" * 64, "world_size": 8}
RECORD |= {"git_commit": "b" * 40, "baseline": {"eval_loss": 3.0, "eval_ko_loss": 3.5}}


def make_run(folder: Path, **options) -> Path:
    """As much of a run directory as the page reads."""
    folder.mkdir()
    record = {**RECORD, "options": {"run_name": folder.name, "learning_rate": 1e-5, **options}}
    (folder / "run.json").write_text(json.dumps(record))
    state = {"log_history": HISTORY, "global_step": 20, "max_steps": 40}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    sample = {"source": "ko", "prompt": "질문\u2028<script>alert(1)</script>", "reference": "모범 답"}
    lines = [{**sample, "step": step, "answer": f"답 {step}"} for step in (0, 20)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    (folder / "bad_steps").mkdir()
    bad = {"step": 7, "reason": "the loss is NaN", "loss": "nan", "grad_norm": 1.0, "rows": [{"row": 3}]}
    (folder / "bad_steps" / "step-7.json").write_text(json.dumps(bad))
    return folder


def shown(page: str) -> str:
    """Its words."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))


def test_a_run_is_shown_whole(tmp_path, capsys):
    run = make_run(tmp_path / "가나")
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    words = shown(page)
    for said in ("가나", "at step 20 of 40", "8 processes", "-1.75", "질문", "답 20", "모범 답", "the loss is NaN"):
        assert said in words, said
    assert [title for title in ("Loss: ko", "Loss: 의학", "MFU") if title not in words] == []
    assert not re.search(r"<script|https?:| d=\"[^\"]*(nan|inf)", page)


def test_what_is_drawn_is_what_was_logged(tmp_path):
    """In one drawing: each step at its place, the base model's level, single evaluations as dots."""
    run = read_run(make_run(tmp_path / "run"))
    page = render([run])
    assert page.count("Loss: ko") == 2  # the title and its label for readers without eyes
    chart = curves.chart("t", [curves.Curve(name="a", points=run.series("loss"))], run.max_steps)
    (drawn,) = chart["curves"]
    low, high = chart["low"], chart["high"]
    assert (low, high) == (pytest.approx(0.95), pytest.approx(2.05))
    expected = [(10 / 40 * 1000, 300 - (2.0 - low) / (high - low) * 300), (500, 300 - (1.0 - low) / (high - low) * 300)]
    found = [tuple(map(float, point.split())) for point in drawn["path"][1:].split("L")]
    assert found == [pytest.approx(place, abs=0.05) for place in expected]
    assert run.series("grad_norm") == [(10, 1.0)]  # infinity has no place


def test_long_curves_are_thinned_and_keep_their_end():
    points = [(step, float(step)) for step in range(1, 10_001)]
    thinned = curves.thinned(points)
    assert len(thinned) <= curves.MOST_POINTS + 1 and thinned[-1] == points[-1]
    assert thinned[0] == (25, 13.0)  # the mean of the first 25
    assert curves.thinned(points[:5]) == points[:5]


def test_several_runs_show_what_differs(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", learning_rate=2e-5)]
    assert report.main([*map(str, runs), "--output", str(tmp_path / "both.html")]) == 0
    words = shown((tmp_path / "both.html").read_text())
    assert "one: trained" in words and "two: held out" in words
    assert "Options that differ" in words and "learning_rate 1e-05 2e-05" in words and "run_name" not in words


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "expected the output_dir of a run, found no run.json" in capsys.readouterr().err
    run = make_run(tmp_path / "run")
    (run / "trainer_state.json").unlink()
    assert report.main([str(run)]) == 2
    assert "nothing to report yet" in capsys.readouterr().err


def test_a_run_that_trains_writes_its_page_at_each_evaluation(tmp_path, caplog):
    """From its own state; what goes wrong is a warning."""
    run = make_run(tmp_path / "run")
    (run / "trainer_state.json").unlink()
    state = TrainerState(global_step=20, max_steps=40, log_history=HISTORY, is_world_process_zero=True)
    callback, args = ReportPage(), SimpleNamespace(output_dir=str(run))
    callback.on_evaluate(args, state, None)
    assert "at step 20 of 40" in shown((run / "report.html").read_text())
    (run / "run.json").write_text("{")
    callback.on_evaluate(args, state, None)
    assert "report.html is not written" in caplog.text
    state.is_world_process_zero = False
    (run / "report.html").unlink()
    callback.on_evaluate(args, state, None)
    assert not (run / "report.html").exists()
