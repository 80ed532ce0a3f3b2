"""Rows that become a document for each trained turn, in a whole preparation with Gemma 4's template."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.chat_templates import resolve_chat_template
from data_prep.rendering.prompted_turns import as_prompted, can_be_split, fit_as_prompted
from data_prep.rendering.renderer import Renderer
from data_prep.shards import read_manifest
from tests.support.preparation import decoded_documents, edit_recipe, run, write_recipe
from tests.support.published_templates import published, tokenizer_for

TALK = (
    Message("user", "One?"),
    Message("assistant", "First.", reasoning="hm"),
    Message("user", "Two? write to a.b@example.com"),
    Message("assistant", "Second.", reasoning="well"),
)
FIRST = "<bos><|turn>user\nOne?<turn|>\n<|turn>model\n<|channel>thought\nhm\n<channel|>First.<turn|>\n"
SECOND = (
    "<bos><|turn>user\nOne?<turn|>\n<|turn>model\nFirst.<turn|>\n<|turn>user\nTwo? write to [EMAIL]<turn|>\n"
    "<|turn>model\n<|channel>thought\nwell\n<channel|>Second.<turn|>\n"
)


@pytest.fixture(scope="module")
def gemma4():
    return tokenizer_for(published("gemma4_v5"))


@pytest.fixture
def recipe(tmp_path, gemma4):
    gemma4.save_pretrained(tmp_path / "tokenizer")
    messages = [m.as_dict() for m in TALK]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    sources = [{"name": "talks", "path": str(tmp_path / "talks.jsonl"), "form": "messages"}]
    options = {
        "chat_template": "tokenizer",
        "sources": sources,
        "eval_fraction": 0,
        "pii": ["email"],
        "bad_rows": "refuse",
    }
    return write_recipe(tmp_path, tokenizer=str(tmp_path / "tokenizer"), **options)


def test_a_row_becomes_a_document_for_each_turn_and_is_counted(recipe, tmp_path, gemma4, capsys):
    assert run(recipe, tmp_path / "out") == 0
    assert decoded_documents(tmp_path / "out", gemma4) == {FIRST: 1, SECOND: 1}
    (source,) = read_manifest(tmp_path / "out")["sources"]
    assert source["places"] == {"masked": 1, "split_as_prompted": 2}
    assert source["turns"]["trained"] == source["turns"]["with_reasoning"] == 2
    assert source["dropped"] == {}
    assert "split_as_prompted 1 (2 places)" in capsys.readouterr().out


def test_a_document_that_is_too_long_drops_the_row(recipe, tmp_path, capsys):
    assert run(edit_recipe(recipe, seq_len=64, bad_rows="skip"), tmp_path / "out") == 2
    assert "dropped {'too_long': 1}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train_on", "flags", "trained"),
    [
        ("all", (None, None), [1, 3]),
        ("last", (None, None), [3]),
        ("all", (False, None), [3]),
        ("flags", (True, None), [1]),
    ],
)
def test_which_turns_get_a_document(train_on, flags, trained):
    first, second = (replace(TALK[i], train=flag) for i, flag in zip((1, 3), flags, strict=True))
    parts = as_prompted(Conversation((TALK[0], first, TALK[2], second), "s", 0), train_on)
    assert [len(part.messages) - 1 for part in parts] == trained
    for part in parts:
        *context, last = part.messages
        assert part.is_prompted and last.train is not False
        assert all(m.train is False for m in context if m.role == "assistant")


def test_what_may_be_split():
    talk, bad = Conversation(TALK, "s", 0), BadRow("template_not_prefix", "")
    assert can_be_split(talk, bad) and can_be_split(talk, BadRow("left_out_by_template", ""))
    assert not can_be_split(talk, BadRow("too_long", ""))
    assert can_be_split(Conversation(TALK[:2], "s", 0), bad)  # a prompt may hold what no turn does
    assert not can_be_split(Conversation(TALK, "s", 0, is_prompted=True), bad)


def test_a_row_of_which_no_turn_is_trained_keeps_its_reason(gemma4):
    renderer = Renderer(gemma4, resolve_chat_template("tokenizer", gemma4), train_on="flags")
    bad = BadRow("template_not_prefix", "")
    assert fit_as_prompted(Conversation(TALK, "s", 0), bad, 999, "drop", renderer) is bad


def test_what_cannot_be_rendered_in_parts_says_why():
    """With the reason of the part, unless that is the general one."""
    # Prints no reasoning in a last answer, and none that ends next to a call.
    tokenizer = tokenizer_for(published("gemma4").replace(r"thinking_text + '\n<channel|>'", "thinking_text"))
    renderer, talk = Renderer(tokenizer, resolve_chat_template("tokenizer", tokenizer)), Conversation(TALK, "s", 0)
    found = fit_as_prompted(talk, BadRow("template_not_prefix", ""), 999, "drop", renderer)
    assert (
        isinstance(found, BadRow) and found.reason == "left_out_by_template" and "reasoning of message 1" in str(found)
    )
    bad = BadRow("left_out_by_template", "")
    assert fit_as_prompted(talk, bad, 999, "drop", renderer) is bad
