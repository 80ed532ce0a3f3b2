"""The model card: what it states, and what it never holds."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.support.export_runs import add_checkpoint, run_export
from train.serving.model_card import CardSources, Licence, model_card, read_evaluations

MANIFEST = {
    "identity": "f8f8",
    "recipe": {
        "sources": [
            {"name": "faq", "path": "/home/someone/secret place/faq.jsonl", "dataset": None},
            {"name": "alpaca", "dataset": "tatsu-lab/alpaca", "split": "train", "revision": "abc"},
        ],
        "pii": ["email"],
        "decontaminate": None,
    },
    "seq_len": 512,
    "tokenizer": {"name": "/home/someone/tokenizer", "sha256": "70c"},
    "chat_template_sha256": "7e3",
    "sources": [
        {
            "name": "faq",
            "rows": 1200,
            "dropped": {"too_long": 3, "duplicate": 4},
            "train_uses": 1000,
            "eval_documents": 9,
        },
        {"name": "alpaca", "rows": 7, "dropped": {}, "train_uses": 7, "eval_documents": 0},
    ],
    "mixture": [{"source": "faq", "got": 0.9}, {"source": "alpaca", "got": 0.1}],
    "splits": {"train": {"rows": 5, "documents": 1007, "tokens": 99000, "trained_tokens": 44000}},
}
RUN = {
    "model_name_or_path": "Qwen/Qwen3-8B",
    "options": {"learning_rate": 1e-5, "output_dir": "/home/someone/run", "resume_from": "/home/someone/run/x"},
    "own_options": {"data": "/home/someone/shards"},
    "world_size": 8,
    "baseline": {"eval_loss": 2.5},
}
STATE = {
    "log_history": [
        {"step": 10, "loss": 1.5, "learning_rate": 1e-5},
        {"step": 10, "eval_loss": 1.25, "eval_faq_loss": 1.125},
        {"step": 20, "eval_loss": 99.0},
    ]
}
RECORD = {
    "run": "run",
    "source": "checkpoint-10",
    "step": 10,
    "weights": "copied",
    "model_name_or_path": "Qwen/Qwen3-8B",
    "base_model": {"weights": "99de"},
    "manifest_sha256": "3b5e",
    "git_commit": "0123abc",
    "versions": {"torch": "2.13.0"},
}
PROOF = {"run": True, "trained_loss": 1.2, "exported_loss": 1.2, "documents": 8, "split": "eval"}


def card(**changes) -> str:
    given = {"name": "mine", "record": RECORD, "proof": PROOF, "run": RUN, "state": STATE, "manifest": MANIFEST}
    return model_card(CardSources(**{"licence": Licence(), **given, **changes}))


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_data_options_and_metrics_are_stated():
    text = card()
    for stated in (
        "| faq | `faq.jsonl` | 1,200 | 7 | 1,000 | 9 | 90.0 % |",
        "| alpaca | tatsu-lab/alpaca train at abc | 7 | 0 | 7 | 0 | 10.0 % |",
        "| train | 1,007 | 99,000 | 44,000 | 5 |",
        "| `eval_loss` | 1.25 | 2.5 |",
        "| `eval_faq_loss` | 1.125 |  |",
        "| `learning_rate` | `1e-05` |",
        "| `resume_from` | `x` |",
        "Base model: `Qwen/Qwen3-8B` (weights `99de`)",
        "identity `f8f8`",
        "manifest sha256 `3b5e`",
        "sha256 `70c`",
        "Personal data in the sources: looked for (email)",
        "Overlap with evaluation texts: not looked for",
        "at most 512 tokens",
    ):
        assert stated in text, stated
    assert "99.0" not in text, "an evaluation after the exported step"
    assert "/home" not in text and "someone" not in text
    assert metadata(text)["base_model"] == "Qwen/Qwen3-8B" and metadata(text)["datasets"] == ["tatsu-lab/alpaca"]


def test_benchmarks_of_the_exported_step_are_stated(tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    for step, time, value in ((10, "2026-2", 0.5), (10, "2026-1", 0.25), (11, "2026-3", 0.75)):
        results = {"ifeval": {"alias": "x", "acc,none": value, "acc_stderr,none": 0.0625, "sample_len": 9}}
        report = {"step": step, "time": time, "results": results, "n-shot": {"ifeval": 0}, "lm_eval_version": "0.4.13"}
        (folder / f"{time}.json").write_text(json.dumps(report))
    text = card(evaluations=read_evaluations(tmp_path, 10))
    table = text.partition("## Benchmarks")[2].partition("##")[0]
    assert "| ifeval | `acc,none` | 0.5 | 0.0625 | 0 |" in table and "lm-evaluation-harness 0.4.13" in table
    assert "0.25" not in table and "0.75" not in table and "sample_len" not in table
    assert "## Benchmarks" not in card()


def test_the_licence_is_the_users_or_unknown():
    assert metadata(card())["license"] == "unknown" and "**Unknown.**" in card()
    given = Licence("other", "my-licence", "https://example.org/licence")
    text = card(licence=given)
    assert {
        "license": "other",
        "license_name": "my-licence",
        "license_link": "https://example.org/licence",
    }.items() <= (metadata(text).items())
    assert "my-licence: https://example.org/licence" in text and "**Unknown.**" not in text


@pytest.mark.parametrize("licence", [Licence("Apache 2"), Licence("other"), Licence("mit", "name")])
def test_licences_that_the_hub_would_not_read_are_refused(licence):
    with pytest.raises(ValueError, match="--license"):
        licence.check()


def test_what_is_not_known_is_said():
    text = card(run={}, state={}, manifest={}, proof={"run": False, "why": "w"})
    assert "Proof: **not run**" in text and "nothing else is known of the data" in text
    assert "no run.json with its options" in text and "neither an evaluation nor a loss" in text
    assert "base_model" not in metadata(text)


def test_an_export_has_its_card_without_paths_and_secrets(tiny_run, tiny_model_dir, tmp_path, capsys):
    record = json.loads((tiny_run / "run.json").read_text())
    record["options"] = {"learning_rate": 0.5, "extra": "hf_" + "0123456789abcdef"}
    (tiny_run / "run.json").write_text(json.dumps(record))
    add_checkpoint(tiny_run, 3, tiny_model_dir("llama"))
    run_export(tiny_run, tmp_path / "out")
    assert "the licence in README.md is unknown: say which with --license" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "0123456789abcdef" not in text and "| `learning_rate` | `0.5` |" in text
    assert "step 3" in text and "- Proof: loss " in text
    assert "README.md" in json.loads((tmp_path / "out" / "export.json").read_text())["digests"]
