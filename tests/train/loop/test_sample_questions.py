"""Questions of one's own, asked at each evaluation."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from data_prep.shards import TOKENIZER_DIR
from tests.conftest import ROOT
from tests.support.in_process import train_here
from tests.support.training import make_shards
from train.loop.sample_answers import QUESTIONS, own_questions
from train.serving.prompt_files import read_file


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("questions")
    return make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1, 2, 3, 1] * 3}, eval_fraction=0.3)


def test_they_are_asked_through_the_shards_template_at_each_evaluation(shards, tiny_model_dir, tmp_path):
    file = tmp_path / "질문.txt"
    file.write_text("사과는 왜 빨간가요?\n\nSay hello.\n")
    options = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama")), "attn_implementation": "sdpa"}
    options |= {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "sample_max_new_tokens": 3}
    train_here(tmp_path, **options, sample_prompts=1, sample_questions=str(file))
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["source"] == QUESTIONS]
    assert [row["step"] for row in own] == [0, 0, 1, 1, 2, 2] and len(rows) == 9
    tokenizer = AutoTokenizer.from_pretrained(shards / TOKENIZER_DIR)
    chat = [{"role": "user", "content": "사과는 왜 빨간가요?"}]
    assert own[0]["prompt"] == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert own[0]["reference"] == ""
    assert "사과는 왜 빨간가요?" in (tmp_path / "run" / "report.html").read_text()


def test_what_cannot_be_asked_is_refused(shards, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(shards / TOKENIZER_DIR)
    file = tmp_path / "q.txt"
    file.write_text("short\n" + "long " * 50 + "\n")
    with pytest.raises(ValueError, match=r"question 2 has [0-9]+ tokens, at most 20 leave room"):
        own_questions(str(file), tokenizer, 20)
    rows = tmp_path / "q.jsonl"
    rows.write_text('{"prompt": "x"}\n{"nothing": 1}\n')
    with pytest.raises(ValueError, match=r"q\.jsonl:2"):
        own_questions(str(rows), tokenizer, 200)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sample_questions", "absent.txt"], "sample_questions absent.txt: expected a UTF-8 text file"),
        (["--sample_questions", "README.md", "--eval_strategy", "no"], "they are asked at each evaluation"),
    ],
)
def test_preflight_finds_it(options, said, shards, tiny_model_dir, tmp_path, capsys, monkeypatch):
    from tests.support.training import run_config
    from train.config.run_config import load_run_config
    from train.preflight import check

    monkeypatch.chdir(ROOT)
    names = {"data": str(shards), "model_name_or_path": str(tiny_model_dir("llama")), "output_dir": str(tmp_path)}
    config = run_config(tmp_path / "run.yaml", eval_strategy="steps", eval_steps=1, **names)
    problems = check(load_run_config(["--config", str(config), *options]), world_size=1)
    assert any(said in problem for problem in problems), problems


def test_the_shipped_questions_are_in_both_languages():
    texts = [chat.question for chat in read_file(ROOT / "configs/train/general_questions.txt", "")]
    korean = [text for text in texts if any("가" <= letter <= "힣" for letter in text)]
    assert len(texts) == 10 and len(korean) == 5
