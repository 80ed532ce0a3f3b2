"""train.evaluate: the harness's command line, what is kept of its results, and what is refused before it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from train import evaluate

TASKS = ("--tasks", "ifeval")
RESULTS = {
    "results": {"ifeval": {"alias": "ifeval", "acc,none": 0.5}},
    "config": {"model": "hf", "model_args": {"note": "hf_" + "0123456789abcdef"}},
    "samples": {"ifeval": [{"doc": "text"}]},
    "pretty_env_info": "long",
    "chat_template": "long",
    "chat_template_sha": "a22d",
}


class Harness:
    """Stands for the process: writes results as lm-eval does, or ends with a code."""

    def __init__(self):
        self.commands, self.code, self.writes = [], 0, True

    def run(self, command):
        self.commands.append(command)
        path = Path(command[command.index("--output_path") + 1])
        if self.writes:
            name = path.with_name(f"{path.stem}_2026-11-28T09-13-34.470885.json")
            name.write_text(json.dumps(RESULTS))
            (path.parent / "samples_ifeval_2026.jsonl").write_text("{}\n")
        return SimpleNamespace(returncode=self.code)


@pytest.fixture
def harness(monkeypatch):
    harness = Harness()
    monkeypatch.setattr(evaluate, "find_spec", lambda name: object())
    monkeypatch.setattr(evaluate.subprocess, "run", harness.run)
    return harness


@pytest.fixture
def export(tmp_path) -> Path:
    folder = tmp_path / "exports" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"run": "run", "source": "checkpoint-7", "step": 7, "manifest_sha256": "3b5e", "weights": "copied"}
    (folder / "export.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    return folder


def test_the_results_lie_in_the_folder_of_the_run(harness, export, run, capsys):
    assert evaluate.main(["--export", str(export), "--run", str(run), *TASKS, "--limit", "5"]) == 0
    (file,) = (run / "evaluation").glob("*.json")
    assert file.name.startswith("mine-step7-") and f"results: {file}" in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert report["results"] == RESULTS["results"] and report["chat_template_sha"] == "a22d"
    assert not {"samples", "pretty_env_info", "chat_template"} & report.keys()
    assert (report["export"], report["source"], report["step"]) == ("mine", "checkpoint-7", 7)
    assert report["options"] == [*TASKS, "--limit", "5"]
    assert report["config"]["model_args"]["note"] == "(hidden)"
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == [
        f"{file.stem}-samples_ifeval_2026.jsonl",
        file.name,
    ]


def test_the_command_asks_through_the_chat_template_in_the_dtype_of_the_export(harness, export):
    evaluate.main(["--export", str(export), *TASKS, "--model_args", "parallelize=True"])
    (command,) = harness.commands
    output = str(export / "evaluation" / ".mine.incomplete" / "results.json")
    assert command == [
        *[sys.executable, "-m", "lm_eval", "run", "--model_args", f"pretrained={export},dtype=auto"],
        *["--apply_chat_template", "--output_path", output, *TASKS, "--model_args", "parallelize=True"],
    ]


def test_several_processes_bare_prompts_and_an_adapter(harness, export):
    (export / "config.json").unlink()
    (export / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen3-8B"}')
    evaluate.main(["--export", str(export), *TASKS, "--num_processes", "4", "--no_chat_template"])
    (command,) = harness.commands
    assert command[2:6] == ["accelerate.commands.launch", "--num_processes", "4", "-m"]
    assert f"pretrained=Qwen/Qwen3-8B,peft={export},tokenizer={export},dtype=auto" in command
    assert "--apply_chat_template" not in command


@pytest.mark.parametrize("fails", ["code", "nothing written"])
def test_a_harness_that_fails_leaves_no_results(fails, harness, export, run, capsys):
    harness.code, harness.writes = (3, True) if fails == "code" else (0, False)
    words = ["--export", str(export), "--run", str(run), *TASKS]
    if fails == "code":
        assert evaluate.main(words) == 1
        assert "lm-eval ended with exit code 3" in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit, match="expected results of lm-eval, found none"):
            evaluate.main(words)
    assert not list((run / "evaluation").glob("*.json"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "EXPORT"], "nothing to evaluate: give --tasks"),
        (["--export", "EXPORT", *TASKS, "--output_path", "x"], "--output_path is set here"),
        (["--export", "EXPORT", *TASKS, "--no_chat_template", "--apply_chat_template"], "leave one of them out"),
        (["--export", "none/at/all", *TASKS], "found no such folder"),
        (["--export", "RUN", *TASKS], "is a run or a checkpoint, not an export"),
        (["--export", "EXPORT", "--run", "none", *TASKS], "expected the folder of a run"),
        (["--export", "COMMA", *TASKS], "lm-eval cuts its --model_args at commas"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_harness_starts(
    words, message, harness, export, run, tmp_path, capsys
):
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "config.json").touch()
    places = {"EXPORT": str(export), "RUN": str(run), "COMMA": str(tmp_path / "a,b")}
    with pytest.raises(SystemExit) as error:
        evaluate.main([places.get(word, word) for word in words])
    assert error.value.code == 2 and message in capsys.readouterr().err
    assert not harness.commands


def test_without_the_extra_it_is_refused(export, monkeypatch):
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[evaluate\]'"):
        evaluate.main(["--export", str(export), *TASKS])


def test_a_dry_run_may_come_before_the_export_and_starts_nothing(harness, tmp_path, capsys):
    later, run = str(tmp_path / "later"), str(tmp_path / "run")
    assert evaluate.main(["--export", later, "--run", run, *TASKS, "--dry_run"]) == 0
    assert "lm_eval run" in capsys.readouterr().out and not harness.commands and not list(tmp_path.iterdir())


TASK = """
task: lessons
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 40, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="optional: needs the extra evaluate")
def test_the_real_harness_finds_that_a_taught_model_answers_right(taught, run, tmp_path):
    """Offline, with a task of its own."""
    from tests.support.taught_model import LESSONS

    rows = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in LESSONS.items()]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "lessons.yaml").write_text(TASK.replace("FILE", str(tmp_path / "rows.jsonl")))
    words = ["--export", str(taught), "--run", str(run), "--tasks", "lessons", "--include_path", str(tmp_path)]
    command = [sys.executable, "-m", "train.evaluate", *words, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (run / "evaluation").glob("*.json")
    report = json.loads(file.read_text())
    assert report["results"]["lessons"]["exact_match,none"] == 1.0
    assert report["n-samples"]["lessons"]["effective"] == 2 and report["step"] == 150
