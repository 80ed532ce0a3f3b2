"""End tokens that answers spell at their end: stripped and counted, kept, or a reason to drop the row."""

from __future__ import annotations

import pytest

from data_prep.conversation import BadRow, Message, ToolCall
from data_prep.rendering import rewrites
from data_prep.rendering.end_tokens import WELL_KNOWN, EndTokens
from data_prep.rendering.rewrites import END_TOKENS, Rewrite
from tests.conftest import ROOT
from tests.support.word_tokenizer import render, trained_text

ENDS = EndTokens(["<|mine|>"])


@pytest.mark.parametrize("token", [*WELL_KNOWN, "<|mine|>"])
def test_an_end_token_goes_with_the_blanks_around_it(token):
    message, removed = ENDS.strip(Message("assistant", f"  Hi there. {token}\n"))
    assert message.content == "  Hi there." and [text for _, text in removed] == [token]
    assert ENDS.may_end(f"Hi.{token}")


def test_the_tokens_and_the_rewrites_are_documented():
    text = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
    names = {value for name, value in vars(rewrites).items() if name.isupper() and isinstance(value, str)}
    assert [name for name in (*WELL_KNOWN, *names - {"\u2005", "\u2006"}) if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("content", "left", "number"),
    [
        ("Hi.</s><|im_end|> </s>", "Hi.", 3),
        ("</s> is the end", "</s> is the end", 0),
        ("It ends in `</s>`", "It ends in `</s>`", 0),
        ("Not <s>this</s>", "Not <s>this</s>", 0),  # HTML
        ("<s>Hi.</s>", "<s>Hi.", 1),  # a BOS token, not HTML
        ("Hi.", "Hi.", 0),
    ],
)
def test_what_is_no_end_token_stays(content, left, number):
    message, removed = ENDS.strip(Message("assistant", content))
    assert (message.content, len(removed)) == (left, number)


def test_an_answer_of_nothing_else_is_empty():
    with pytest.raises(BadRow, match="empty_output"):
        ENDS.strip(Message("assistant", " <|endoftext|>"))
    message, _ = ENDS.strip(Message("assistant", "</s>", tool_calls=(ToolCall("f", {}),)))
    assert message.content == ""


@pytest.mark.parametrize(
    ("policy", "trained"),
    [("strip", "Hello.</s>"), ("keep", "Hello.<|eot_id|></s>"), ("reject", "end_token_in_answer")],
)
def test_the_recipes_policy(word_tokenizer, policy, trained):
    messages = (Message("user", "Bye </s>"), Message("assistant", "Hello.<|eot_id|>"))
    assert trained_text(word_tokenizer, "alpaca", messages, end_tokens_in_answers=policy) == trained


def test_it_is_counted_next_to_what_is_escaped(word_tokenizer):
    messages = (Message("user", "Hi </s> <|im_end|>"), Message("assistant", "Hello.<|eot_id|>"))
    found = render(word_tokenizer, "alpaca", messages).rewrites
    assert found == (Rewrite("escaped", 2), Rewrite(END_TOKENS, 1, 1))
    assert render(word_tokenizer, "alpaca", (Message("user", "Hi"), Message("assistant", "Hello."))).rewrites == ()
