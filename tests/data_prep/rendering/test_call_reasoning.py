"""Templates that print reasoning next to calls and in no answer: it is trained as the model writes it (Gemma 4)."""

from __future__ import annotations

import pytest

from data_prep.conversation import Conversation, Message, ToolCall
from data_prep.rendering.call_reasoning import CallReasoning, find_call_reasoning
from data_prep.rendering.prompted_turns import fit_as_prompted
from tests.support.published_templates import published, renderer_of
from tests.support.trained_parts import trained_parts

QUESTION, FOUND = Message("user", "Hi?"), Message("tool", "found")
CALL = Message("assistant", "", tool_calls=(ToolCall("look", {}),), reasoning="I look.")
TALK = (QUESTION, CALL, FOUND, Message("assistant", "Yes.", reasoning=" It is. "), Message("user", "So?"))
ROW = (*TALK, Message("assistant", "No.", reasoning="It is not."))


@pytest.fixture(scope="module")
def renderer():
    return renderer_of(published("gemma4"))


def test_each_answer_has_its_reasoning_as_a_call_has_it(renderer):
    row = Conversation(ROW, "s", 0)
    (whole,) = renderer.render([row])
    served = fit_as_prompted(row, whole, 9999, "drop", renderer)
    (_, calls), (_, first), (prompt, last) = trained_parts(renderer.tokenizer, *served.fitted.examples)
    assert calls.startswith("<|channel>thought\nI look.\n<channel|><|tool_call>call:look{}")
    assert first == "<|channel>thought\nIt is.\n<channel|>Yes.<turn|>"
    assert last == "<|channel>thought\nIt is not.\n<channel|>No.<turn|>"
    messages = [m.as_dict() for m in TALK]
    how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
    assert prompt == renderer.tokenizer.apply_chat_template(messages, **how)  # that of a server asked to think


def test_it_is_found_where_answers_lack_it_alone(renderer):
    assert renderer._apply.next_to_calls == CallReasoning("reasoning_content", "<|channel>thought\n", "\n<channel|>")
    printed = renderer_of(published("gemma4").replace(" and message.get('tool_calls') -%}", " -%}"))
    assert printed._apply.next_to_calls is None
    assert find_call_reasoning(renderer._apply, None) is None
