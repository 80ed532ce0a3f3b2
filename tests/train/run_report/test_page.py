"""The page of a run."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import yaml
from transformers import TrainerState

from data_prep.recipe import Recipe
from tests.support.report_runs import HISTORY, make_run, shown
from tests.support.training import make_shards
from train import report
from train.config.run_config import load_run_config
from train.loop.report_page import ReportPage
from train.run.run_record import make_record
from train.run_report import curves
from train.run_report.answers import answers
from train.run_report.commands import commands, run_yaml
from train.run_report.mixture import mixture
from train.run_report.page import MOST_EVALUATIONS, few, render
from train.run_report.run_files import read_run, read_samples


def test_a_run_is_shown_whole(tmp_path, capsys):
    run = make_run(tmp_path / "가나")
    assert report.main([str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    words = shown(page)
    for said in (
        "가나",
        "at step 20 of 40",
        "8 processes",
        "-1.75",
        "질문",
        "답 20",
        "모범 답",
        "the loss is NaN",
        "ko 9.5",
    ):
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
    points[700] = (701, 1e6)
    means, band = curves.thinned(points)
    assert len(means) == len(band) == curves.MOST_POINTS and means[-1][0] == points[-1][0]
    assert means[0] == (25, 13.0) and band[0] == (25, 1.0, 25.0)  # of the first 25
    assert max(high for _, _, high in band) == 1e6  # no peak is lost
    assert curves.thinned(points[:5]) == (points[:5], [])


def test_several_runs_show_what_differs(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", learning_rate=2e-5)]
    assert report.main([*map(str, runs), "--output", str(tmp_path / "both.html")]) == 0
    words = shown((tmp_path / "both.html").read_text())
    assert "one: trained" in words and "two: held out" in words
    assert "What differs" in words and "learning_rate 1e-05 2e-05" in words
    assert "run_name" not in words.split("What differs")[1].split("Commands")[0]
    assert "Last evaluations" in words and "two 20 1.25 -1.750" in words


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


def test_base_and_tuned_stand_side_by_side(tmp_path):
    """In-domain and general prompts; the answers between them are kept aside."""
    samples = [
        {"step": step, "source": source, "prompt": f"<|im_start|>user\n{source}?", "answer": f"{source} {step}"}
        for step in (0, 10, 20)
        for source in ("sample_questions", "ko")
    ]
    samples.append({"step": 20, "source": "new", "prompt": "late", "answer": "x", "reference": "r"})
    domain, late, general = answers(samples)
    assert (domain["source"], domain["base"], domain["latest"], domain["step"]) == ("ko", "ko 0", "ko 20", 20)
    assert domain["earlier"] == [(10, "ko 10")] and domain["title"] == "user ko?"
    assert (late["base"], late["latest"], late["reference"]) == (None, "x", "r")
    assert general["general"] and general["base"] == "sample_questions 0"
    assert answers(samples[:2])[0]["latest"] is None  # only the base model has answered


def test_what_is_damaged_is_named_and_the_rest_is_shown(tmp_path):
    """Lines and files of which a kill or a full disk has left a half."""
    run = make_run(tmp_path / "run")
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"step": 40, "answer": "반')
    (run / "bad_steps" / "step-9.json").write_text('{"step": 9,')
    (run / "starts").mkdir()
    (run / "starts" / "0001.json").write_text('{"began"')
    words = shown(render([read_run(run)]))
    for said in (
        "samples.jsonl line 3 cannot be read",
        "step-9.json cannot be read",
        "0001.json cannot be read",
        "답 20",
    ):
        assert said in words
    with pytest.raises(ValueError, match=r"samples\.jsonl line 3 cannot be read"):
        read_samples(run / "samples.jsonl")


def test_names_and_texts_are_text(tmp_path):
    """Nothing from a run is markup, turns the direction of writing or breaks the file's encoding."""
    run = make_run(tmp_path / "<b>&")
    evil = "</pre><script>x</script>\u202e\x07\ud800"
    line = {"step": 20, "source": evil, "prompt": evil, "answer": evil, "reference": evil}
    (run / "samples.jsonl").write_text(json.dumps(line) + "\n")
    (run / "starts").mkdir()
    start = {"began": 1.0, "host": evil, "command": evil, "environment": {evil: evil}}
    (run / "starts" / "0001.json").write_text(json.dumps({**start, "ended": {"how": "failed", "said": evil}}))
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "<script" not in page and "\u202e" not in page and "\x07" not in page and "<b>&" not in page
    assert "&lt;/pre&gt;&lt;script&gt;x" in page and "\\ud800" in page


def test_a_run_just_begun_has_a_page(tmp_path):
    run = make_run(tmp_path / "run")
    for name in ("samples.jsonl", "bad_steps/step-7.json"):
        (run / name).unlink()
    now = {"log_history": HISTORY[:1], "global_step": 0, "max_steps": 40}
    words = shown(render([read_run(run, now)]))
    assert "at step 0 of 40" in words and "None is complete" in words and "held out 3" in words
    begun = read_run(run, {})
    begun.record["baseline"] = None
    assert "No step was logged yet" in shown(render([begun]))


def test_many_evaluations_are_thinned():
    rows = [{"step": step} for step in range(1000)]
    kept = few(rows)
    assert len(kept) <= MOST_EVALUATIONS and kept[-1] == rows[-1] and few(rows[:5]) == rows[:5]


def test_the_options_of_the_page_are_a_run_config(tmp_path, tiny_tokenizer):
    """Those of the libraries and ours: what is read from it is what was given."""
    given = {"data": "shards/mix", "model_name_or_path": "base", "output_dir": "run", "on_bad_step": "skip"}
    given |= {"learning_rate": 1e-5, "hang_seconds": {"step": 60}, "lora_target_modules": ["q_proj"], "use_peft": True}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    config = load_run_config(["--config", str(path)])
    shards = make_shards(tmp_path, tiny_tokenizer.name_or_path, {"one": [1, 2] * 3})
    object.__setattr__(config.own, "data", str(shards))
    record = json.loads(json.dumps(make_record(tmp_path / "none", config, 2)))
    path.write_text(run_yaml(record))
    again = load_run_config(["--config", str(path)])
    assert (again.own, again.sft, again.model) == (config.own, config.sft, config.model)
    found = mixture(record)
    assert [source["name"] for source in found["sources"]] == ["one"] and found["sources"][0]["got"] == 1.0
    assert Recipe.model_validate(yaml.safe_load(found["recipe"])).sources[0].name == "one"
    assert "other shards" in mixture({**record, "manifest_sha256": "0" * 64})["problem"]
    assert mixture({"data": str(tmp_path / "gone")})["problem"]


@pytest.mark.parametrize(
    ("started", "processes", "command"),
    [
        (None, 1, "packhaul train --config run.yaml"),
        ("accelerate launch --config_file a.yaml -m train.sft", 8, "packhaul train --launch a.yaml --num_processes 8 "),
        (None, 8, "packhaul train --launch LAUNCH --num_processes 8 "),
    ],
)
def test_the_command_that_trains_again_names_its_launch_file(started, processes, command, tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    run.record["world_size"] = processes
    run.starts.extend([{"command": started}] if started else [])
    assert commands(run)["trained"][1].startswith(command)
