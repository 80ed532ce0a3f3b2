"""Flags of train.generate that mean nothing, or do not go together, are refused before anything is loaded."""

from __future__ import annotations

import pytest

from train import generate

THINKS = ["--chat_template_kwargs", '{"enable_thinking": true}']


@pytest.mark.parametrize(
    "wrong",
    [
        ["--repeat", "0"],
        ["--do_sample", "maybe"],
        ["--max_new_tokens", "-1"],
        ["--max_tokens", "5"],
        ["--temperature", "0"],
        ["--temperature", "nan"],
        ["--top_p", "1.5"],  # transformers would ignore it
        ["--top_p", "0"],
        ["--top_k", "-1"],
        ["--repetition_penalty", "0"],
    ],
    ids=" ".join,
)
def test_values_that_mean_nothing_are_refused_at_once(wrong, capsys):
    with pytest.raises(SystemExit) as error:
        generate.main(["--model", "unread", "--prompt", "x", "--do_sample", *wrong])
    assert error.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_nothing_to_ask_is_refused(capsys):
    with pytest.raises(SystemExit):
        generate.main(["--model", "unread"])
    assert "nothing to ask" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--prompt", "x"], ["--repeat", "2"], ["--base_model", "x"], ["--batch_size", "2"]])
def test_a_conversation_has_one_model_and_no_prompts(words, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--model", "x", "--chat", *words])
    assert "--chat asks one model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "x"], "give --model, or --compare"),
        (["--model", "a", "--compare", "b", "c", "--prompt", "x"], "give --model, or --compare"),
        (["--compare", "a", "--prompt", "x"], "two models or more, each once, found a"),
        (["--compare", "a", "a", "--prompt", "x"], "two models or more, each once, found a a"),
        (["--compare", "a", "b", "--base_model", "c", "--prompt", "x"], "name it as one of --compare"),
        (["--model", "a", "--prompt", "x", "--chat_template_kwargs", "[]"], "expected a JSON object"),
        (["--model", "a", "--prompt", "x", "--chat_template_kwargs", '{"tokenize": 1}'], "'tokenize' is no variable"),
        (
            ["--model", "a", "--prompt", "x", "--enable_thinking", "true", *THINKS],
            "enable_thinking is given twice",
        ),
        (["--model", "a", "--prompt", "x", "--dtype", "int8"], "invalid choice"),
    ],
)
def test_flags_that_do_not_go_together_are_refused_at_once(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        generate.main(words)
    assert error.value.code == 2 and message in capsys.readouterr().err
