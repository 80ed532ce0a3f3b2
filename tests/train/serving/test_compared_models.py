"""Several models next to each other: the base model and the tuned one, or any."""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import pytest

from tests.support.taught_model import LESSONS, ask
from train import generate


def test_several_prompts_base_and_tuned_side_by_side_repeated_and_recorded(taught, tiny_model_dir, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    base = tiny_model_dir("qwen3")
    questions = list(LESSONS)
    options = ["--prompt", questions[0], "--prompt", questions[1], "--base_model", str(base), "--repeat", "2"]
    ask(taught, *options, "--max_new_tokens", "60", "--output", str(output), "--seed", "7")
    captured = capsys.readouterr()
    assert captured.err.count("does not sample: all answers will be the same") == 4
    assert captured.err.index("base: loading") < captured.err.index("tuned: loading")
    for number, (question, answer) in enumerate(LESSONS.items(), 1):
        assert f"[{number}/2] {question}\nbase 1> " in captured.out
        assert f"tuned 1> {answer}\ntuned 2> {answer}\n" in captured.out
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [(r["model"], r["repeat"], r["seed"]) for r in rows] == [
        (str(m), r, 7 + r) for _ in questions for m in (base, taught) for r in (0, 1)
    ]
    tuned = [r for r in rows if r["model"] == str(taught)]
    assert [r["answer"] for r in tuned] == [a for a in LESSONS.values() for _ in range(2)]
    assert all(r["ended"] and r["new_tokens"] < 60 for r in tuned)
    assert rows[0]["messages"] == [{"role": "user", "content": questions[0]}]
    assert rows[0]["options"] == {"max_new_tokens": 60}
    assert not any(r["ended"] for r in rows if r["model"] == str(base) and r["new_tokens"] == 60)


def test_a_base_model_without_a_template_is_asked_through_the_tuned_ones(taught, tiny_model_dir, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(taught, base)
    (base / "chat_template.jinja").unlink()
    (base / "generation_config.json").unlink()
    ask(taught, "--prompt", "Say hello.", "--base_model", str(base))
    captured = capsys.readouterr()
    assert "has no chat template: asked through that of" in captured.err
    assert "base> Hello, my friend.\ntuned> Hello, my friend.\n" in captured.out
    small = tmp_path / "small"
    shutil.copytree(tiny_model_dir("llama", vocab_size=500), small)
    (small / "chat_template.jinja").unlink()
    with pytest.raises(SystemExit, match="only 500 embeddings for the 592 tokens"):
        ask(taught, "--prompt", "x", "--base_model", str(small))


def test_compared_models_answer_one_after_the_other_and_only_one_is_in_memory(
    taught, tiny_model_dir, tmp_path, capsys, monkeypatch
):
    from train.serving import loaded_models

    alive, load = [], loaded_models.load

    def counted(path, loading):
        gc.collect()
        assert not [model for model in alive if model() is not None], "the model before is still there"
        loaded = load(path, loading)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(loaded_models, "load", counted)
    run, other = taught.parent / "run", tiny_model_dir("qwen3")
    question, answer = next(iter(LESSONS.items()))
    models = [str(taught), str(run), str(other)]
    generate.main(["--compare", *models, "--prompt", question, "--max_new_tokens", "40", "--output", f"{tmp_path}/o"])
    captured = capsys.readouterr()
    assert len(alive) == 3
    assert f"[1/1] {question}\nexport> {answer}\nrun> {answer}\n{other.name}> " in captured.out
    rows = [json.loads(line) for line in (tmp_path / "o").read_text(encoding="utf-8").splitlines()]
    assert [row["model"] for row in rows] == models
