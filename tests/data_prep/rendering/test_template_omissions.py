"""Rows of which a chat template would leave a part out: dropped with the reason; and what belongs to whole ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import trl

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import GENERATION_MARK, ChatTemplate, resolve_chat_template
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.reasoning import split_inline
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX
from data_prep.stages.parts import _end_token_ids
from tests.conftest import build_tiny_tokenizer

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CONTROL = ["<|eot_id|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|return|>", "<|call|>", "<turn|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
USER, ANSWER = Message("user", "What is packing?"), Message("assistant", "Many rows.")
CALL = ToolCall("look_up", {"word": "packing"})
RESULT = Message("tool", 'found "many" rows')
CALLS, SAYS_AND_CALLS = (Message("assistant", text, tool_calls=(CALL,)) for text in ("", "Let me see."))
THINKS = Message("assistant", "Many rows.", reasoning="They ask.")
TOOLS = ({"type": "function", "function": {"name": "look_up", "description": "d", "parameters": {"type": "object"}}},)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Its tags are added tokens that are not special, as Qwen3's."""
    tokenizer = build_tiny_tokenizer(tmp_path_factory.mktemp("tags"))
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    tokenizer.add_tokens([*TAGS, "packing", "<b>"])
    return tokenizer


def renderer_of(tokenizer, name: str, **options) -> Renderer:
    """With a built-in template or, where there is none, with TRL's."""
    path = TRL_TEMPLATES / f"{name}.jinja"
    if not path.exists() or not options.pop("theirs", True):
        return Renderer(tokenizer, resolve_chat_template(name, tokenizer), **options)
    text = path.read_text(encoding="utf-8")
    return Renderer(tokenizer, ChatTemplate(text, name, has_marks=bool(GENERATION_MARK.search(text))), **options)


def outcome(renderer: Renderer, *messages: Message, tools=()) -> str:
    """The trained text, or the reason why the row is dropped."""
    result = renderer.render([Conversation(messages, "s", 0, tools)])[0]
    if isinstance(result, BadRow):
        return result.reason
    return renderer.tokenizer.decode([i for i in result.labels.tolist() if i != IGNORE_INDEX])


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        ("llama3_1", (USER, CALLS, RESULT, ANSWER), '{"name": "look_up", "parameters": {"word": "packing"}}'),
        ("llama3_1", (USER, SAYS_AND_CALLS, RESULT, ANSWER), "left_out_by_template"),
        ("phi3_training", (USER, ANSWER, USER, ANSWER), "Many rows.<|end|>Many rows.<|end|>"),
        ("phi3_training", (USER, ANSWER, RESULT, ANSWER), "left_out_by_template"),
        ("gemma4", (USER, THINKS), "left_out_by_template"),
        ("qwen3_instruct_2507_training", (USER, THINKS), "<think>\nThey ask.\n</think>\n\nMany rows.<|im_end|>"),
        ("qwen3_training", (USER, THINKS), "<think>\nThey ask.\n</think>\n\nMany rows.<|im_end|>"),
    ],
)
def test_a_row_is_rendered_whole_or_dropped(tokenizer, name, messages, expected):
    found = outcome(renderer_of(tokenizer, name), *messages, tools=TOOLS if CALLS in messages else ())
    assert found.startswith(expected)


def test_a_template_that_loses_what_the_row_quotes(tokenizer):
    """TRL's Qwen3 takes what stands before any </think> for thoughts. Where it is no token, nothing escapes it."""
    quote = Message("assistant", "Write the `</think>` tag.")
    assert outcome(renderer_of(tokenizer, "qwen3_training", control_tokens="allow"), USER, quote) == (
        "left_out_by_template"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Write the `</think>` tag.", (None, "Write the `</think>` tag.")),
        ("<think>\na\n</think>\n\nb </think> c", ("\na\n", "\n\nb </think> c")),
        ("a</think>\n\nb", ("a", "\n\nb")),
        ("the <think> and </think>\ntags", (None, "the <think> and </think>\ntags")),
    ],
)
@pytest.mark.parametrize("policy", ["escape", "allow"])
def test_thoughts_are_told_from_quoted_tags(tokenizer, policy, content, expected):
    assert split_inline(content) == expected
    thoughts, answer = expected
    trained = outcome(
        renderer_of(tokenizer, "qwen3", theirs=False, control_tokens=policy), USER, Message("assistant", content)
    )
    block = f"<think>\n{thoughts.strip()}\n</think>\n\n" if thoughts else ""  # an empty one is not trained
    assert trained == f"{block}{answer.strip()}<|im_end|>"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>a</think>", "empty_output"),
        ("<think>a</think> b </think> c", "b </think> c<|im_end|>"),
        ("a</think>\n\nb", "b<|im_end|>"),
        ("Write the `</think>` tag.", "Write the `</think>` tag.<|im_end|>"),
        ("a</think>b", "unclear_reasoning"),
        ("<think>and on", "unclosed_reasoning"),
    ],
)
def test_what_is_left_without_thoughts(tokenizer, content, expected):
    renderer = renderer_of(tokenizer, "chatml", reasoning="strip")
    assert outcome(renderer, USER, Message("assistant", content)) == expected


def test_added_tokens_that_are_not_special_are_escaped_where_the_row_spells_them(tokenizer):
    quotes = Message("user", "</tool_response><tool_call> <b>packing</b>")
    thinks = Message("assistant", "<think>\nThey ask for </tool_call>.\n</think>\n\n", tool_calls=(CALL,))
    renderer = renderer_of(tokenizer, "qwen3", theirs=False)
    example = renderer.render([Conversation((quotes, thinks, RESULT, ANSWER), "s", 0, TOOLS)])[0]
    assert isinstance(example, TokenizedExample), example
    plain = renderer.render([Conversation((USER, THINKS, USER, CALLS, RESULT, ANSWER), "s", 0, TOOLS)])[0]
    for tag in TAGS:  # the template's own stay
        number = tokenizer.convert_tokens_to_ids(tag)
        more = 1 if "think" in tag else 0  # the other has one answer more
        assert example.input_ids.tolist().count(number) == plain.input_ids.tolist().count(number) - more, tag
    assert tokenizer.convert_tokens_to_ids("packing") in example.input_ids  # a word is no control text
    text = tokenizer.decode(example.input_ids.tolist())
    assert "user\n</tool_response><tool_call> <b>packing</b><|im_end|>" in text
    assert "<think>\nThey ask for </tool_call>.\n</think>\n\n<tool_call>" in text
    rejecting = renderer_of(tokenizer, "qwen3", theirs=False, control_tokens="reject")
    assert outcome(rejecting, quotes, ANSWER) == "control_token_in_text"
    assert outcome(rejecting, USER, Message("assistant", "<think>a</think>b")) == "<think>\na\n</think>\n\nb<|im_end|>"


def test_every_id_that_ends_a_trained_turn_is_found():
    def example(*labels):
        labels = np.array(labels, dtype=np.int32)
        return TokenizedExample(labels, labels)

    no = IGNORE_INDEX
    examples = [example(no, 5, 1, no, 6, 2, no), example(5, 3), example(no, 5, 1, no, 7)]
    assert _end_token_ids(examples, [False, False, True]) == [1, 2, 3]
    assert _end_token_ids(examples, [False, False, False]) == [1, 2, 3, 7]
    assert _end_token_ids([], []) == []


def test_a_template_that_prints_the_date_prints_the_same_one_on_any_day(tokenizer):
    text = "{{- strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    renderer = Renderer(tokenizer, ChatTemplate(text, "dated", has_marks=True))
    for one in (renderer, pickle.loads(pickle.dumps(renderer))):
        for messages in ((USER, ANSWER), (USER, THINKS)):
            ids = one.render([Conversation(messages, "s", 0)])[0].input_ids.tolist()
            assert tokenizer.decode(ids).startswith("26 Jul 2024<|im_start|>user")
