"""The quickstart's instruction set, tokenizer and scoring: what its figures rest on."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.benchmarks import quickstart, quickstart_commands, quickstart_model, quickstart_tasks
from tests.benchmarks.quickstart_tasks import SYLLABLES, TASKS, write_instruction_set

EXPECTED = {
    "en_repeat": ("tomira", "tomira"),
    "en_upper": ("tomira", "TOMIRA"),
    "en_first": ("tomira", "t"),
    "en_last": ("tomira", "a"),
    "en_reverse": ("tomira", "arimot"),
    "en_length": ("tomira", "6"),
    "ko_repeat": ("나비사", "나비사"),
    "ko_initials": ("나비사", "ㄴㅂㅅ"),
    "ko_first": ("나비사", "나"),
    "ko_last": ("나비사", "사"),
    "ko_reverse": ("나비사", "사비나"),
    "ko_length": ("나비사", "3"),
}


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def instruction_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_instruction_set(folder, train_rows=300, held_out_rows=20, seed=1)
    return folder


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_answers_are_right(task):
    word, answer = EXPECTED[task.name]
    assert task.answer(word) == answer


def test_initial_consonants_agree_with_unicode():
    for syllable in SYLLABLES:
        jamo = unicodedata.normalize("NFD", syllable)[0]  # HANGUL CHOSEONG KIYEOK
        letter = quickstart_tasks.initial_consonants(syllable)  # HANGUL LETTER KIYEOK
        assert unicodedata.name(letter).split()[-1] == unicodedata.name(jamo).split()[-1], syllable


def test_no_held_out_word_occurs_in_training(instruction_set):
    train = read(instruction_set / "train_en.jsonl") + read(instruction_set / "train_ko.jsonl")
    held_out = read(instruction_set / "held_out.jsonl")
    seen = {row["input"] for row in train} | {row["output"].lower() for row in train}
    assert len(held_out) == 20 * len(TASKS)
    assert not [row for row in held_out if row["input"] in seen]


def test_every_task_has_its_rows_and_no_row_twice(instruction_set):
    for language in ("en", "ko"):
        rows = read(instruction_set / f"train_{language}.jsonl")
        counts = {task.name: sum(row["task"] == task.name for row in rows) for task in TASKS}
        assert counts == {task.name: 300 if task.language == language else 0 for task in TASKS}
        assert len({(row["instruction"], row["input"]) for row in rows}) == len(rows)


def test_the_same_seed_gives_the_same_bytes(instruction_set, tmp_path):
    write_instruction_set(tmp_path / "same", train_rows=300, held_out_rows=20, seed=1)
    write_instruction_set(tmp_path / "other", train_rows=300, held_out_rows=20, seed=2)
    for name in ("train_en.jsonl", "train_ko.jsonl", "held_out.jsonl"):
        content = (instruction_set / name).read_bytes()
        assert (tmp_path / "same" / name).read_bytes() == content
        assert (tmp_path / "other" / name).read_bytes() != content


def test_tokenizer_keeps_instructions_whole_and_spells_words(instruction_set, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setattr(quickstart_model, "MIN_FREQUENCY", 100)
    files = sorted(instruction_set.glob("train_*.jsonl"))
    size = quickstart_model.train_tokenizer(files, tmp_path / "tokenizer")
    parameters = quickstart_model.make_model(tmp_path / "tokenizer", tmp_path / "model")
    # From the model's folder: a model type may make transformers rebuild the tokenizer in its own way.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert 300 < size < 600 and 400_000 < parameters < 600_000
    text = "<|im_start|>user\nWrite the word backwards.\n\ntomira<|im_end|>\n"
    pieces = [
        "<|im_start|>",
        "user",
        "\n",
        "Write",
        " the",
        " word",
        " backwards",
        ".",
        "\n\n",
        *"tomira",
        "<|im_end|>",
        "\n",
    ]
    assert tokenizer.tokenize(text) == pieces
    assert tokenizer.tokenize("단어를 거꾸로 쓰세요.\n\n나비사") == [
        "단어를",
        " 거꾸로",
        " 쓰세요",
        ".",
        "\n\n",
        *"나비사",
    ]
    assert set(tokenizer.all_special_tokens) == {"<|pad|>", "<|im_start|>", "<|im_end|>"}
    unseen = "Zürich — 값, 🙂\tthe  end"
    assert tokenizer.decode(tokenizer(unseen).input_ids) == unseen


def test_scores():
    rows = [{"task": "a", "output": "x"}, {"task": "a", "output": "y"}, {"task": "b", "output": "z"}]
    assert quickstart.exact_match(rows, ["x", "y ", "z"]) == {"a": 0.5, "b": 1.0}
    before = {"a": 0.0, "b": 0.5, "c": 0.05}
    assert quickstart.learnt_tasks(before, {"a": 0.79, "b": 1.0, "c": 0.8}) == ["c"]


def test_only_an_earlier_quickstart_is_removed(tmp_path):
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    quickstart._start_afresh(own)
    (own / "run").mkdir()
    quickstart._start_afresh(own)
    assert [path.name for path in own.iterdir()] == [quickstart.MARKER]
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        quickstart._start_afresh(foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_recipe_follows_the_output(tmp_path):
    from data_prep.recipe import load_recipe

    assert str(quickstart._recipe(Path("runs/quickstart"))) == quickstart.RECIPE
    moved = load_recipe(quickstart._recipe(tmp_path))
    assert moved.tokenizer == f"{tmp_path}/tokenizer"
    assert [source.path for source in moved.sources] == [f"{tmp_path}/data/train_{x}.jsonl" for x in ("en", "ko")]


def test_a_failed_step_shows_its_command_and_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "print('shards are missing'); raise SystemExit(3)"]
    with pytest.raises(ValueError, match=r"train failed with exit code 3.*\n.*shards are missing"):
        quickstart_commands.run("train", command, tmp_path)


def test_a_step_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart_commands, "STEP_LIMIT", 0.5)
    with pytest.raises(ValueError, match="train failed with exit code -15"):  # by its end it would be 0
        quickstart_commands.run("train", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path)
