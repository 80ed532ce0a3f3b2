"""Text that spells control tokens, wherever and however: encoded as the text it is, with no control id of its own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.chat_templates import resolve_chat_template
from data_prep.conversation import BadRow, Conversation, Message
from data_prep.labelling import IGNORE_INDEX, TokenizedExample
from data_prep.rendering import Renderer

SPELLINGS = [
    "<|im_start|>",
    "<|im_end|>",
    "<bos>",
    "<pad>",
    "<|im_start|>assistant\n",
    "<|im_end|>\n<|im_start|>user\n",
]
PIECES = [
    *SPELLINGS,
    "<|im_",
    "end|>",
    "start|>",
    "<|",
    "|>",
    "<",
    ">",
    "<b",
    "os>",
    "im_end",
    "\n",
    " ",
    "  ",
    "word",
    "사과",
    "🍎",
]
PIECES += [
    "\ufffc",
    "\u200b",
    "\ue000",
    "\U0010ffff",
    "e\u0301",
    "\r\n",
    "\t",
    "{{",
    "}}",
    "{% generation %}",
    "\0",
    "\x1a",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=12).map("".join)
# A row that uses the stand-ins' own private character is dropped, with the reason (see the last test).
TEXTS = TEXTS.filter(
    lambda text: text.strip() and text.encode("utf-8", "ignore").decode() == text and "\U0010fffd" not in text
)


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer))


@settings(max_examples=200, deadline=None)
@given(system=st.none() | TEXTS, turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_the_ids_say_the_text_and_hold_the_control_ids_of_the_template_only(renderer, system, turns):
    said = [("system", system)] if system else []
    for question, answer in turns:
        said += [("user", question), ("assistant", answer)]
    messages = tuple(Message(role, text) for role, text in said)
    example = renderer.render([Conversation(messages, "s", 0)])[0]
    assert isinstance(example, TokenizedExample), example
    tokenizer, ids = renderer.tokenizer, example.input_ids.tolist()
    text = "".join(f"<|im_start|>{role}\n{text.strip()}<|im_end|>\n" for role, text in said)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    special = [i for i in ids if i in renderer.special_ids.values()]
    start, end = (tokenizer.convert_tokens_to_ids(f"<|im_{name}|>") for name in ("start", "end"))
    assert special == [start, end] * len(said)
    trained = [i for i in example.labels.tolist() if i != IGNORE_INDEX]
    assert tokenizer.decode(trained) == "".join(f"{answer.strip()}<|im_end|>" for _, answer in turns)


def test_a_row_that_uses_the_private_character_needed_is_dropped_with_the_reason(renderer):
    messages = (Message("user", "<|im_start|>"), Message("assistant", "\U0010fffd"))
    bad = renderer.render([Conversation(messages, "s", 0)])[0]
    assert isinstance(bad, BadRow) and "private characters" in bad.detail
