"""Reasoning that a template never prints, as the model writes it after the prompt of a server (DeepSeek R1 to V3.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.prompted_turns import can_be_split, fit_as_prompted
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.written_reasoning import WrittenReasoning, written_as
from tests.support.published_templates import published, renderer_of
from tests.support.trained_parts import trained_parts

QUESTION, ANSWER = Message("user", "Hi?"), Message("assistant", "Yes.", reasoning="why")
TALK = (QUESTION, ANSWER, Message("user", "So?"), Message("assistant", "No.", reasoning="hm"))
STEPS = (
    QUESTION,
    Message("assistant", "", reasoning="which", tool_calls=(ToolCall("look", {"at": "it"}),)),
    Message("tool", "found"),
    ANSWER,
)
CALL = '{"name": "look", "arguments": {"at": "it"}}'
# The prompt begins the reasoning, and a turn drops all before </think> (R1 and what was distilled from it).
ALWAYS_THINKS = (
    "{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}{% else %}<|assistant|>"
    "{{ m.content.split('</think>')[-1] }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}{# tools #}"
)
# The model writes both tags (R1 as vLLM prompts it).
WRITES_BOTH = ALWAYS_THINKS.replace("<think>\n", "")
# It thinks when it is asked to, without line breaks, and each turn holds the end of the block (V3.1).
WHEN_ASKED = ALWAYS_THINKS.replace("<|assistant|>{{", "<|assistant|></think>{{").replace(
    "<think>\n", "{{ '<think>' if thinking is defined and thinking else '</think>' }}"
)
# A last turn has a block of its own, also where the content begins with one (Kimi K2 Thinking, Nemotron Nano 2).
OWN_BLOCK = ALWAYS_THINKS.replace("{{ m.content.split('</think>')[-1] }}", "<think></think>{{ m.content }}").replace(
    "<think>\n{%", "{%"
)


# A field for reasoning, which is printed to a model that is asked to think (V3.2, V4).
FIELD_WHEN_ASKED = (
    "{% set thinks = thinking is defined and thinking %}{% for m in messages %}{% if m.role != 'assistant' %}"
    "<|{{ m.role }}|>{{ m.content }}{% else %}<|assistant|>{% if thinks %}<think>{{ m.reasoning_content }}{% endif %}"
    "</think>{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{{ '<think>' if thinks else '</think>' }}{% endif %}"
)
# Reasoning of the last message alone.
LAST_REASONING = (
    "{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}{% else %}<|assistant|>"
    "{% generation %}{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}{# tools #}"
)


def documents(renderer: Renderer, *messages: Message) -> list[TokenizedExample]:
    row = Conversation(messages, "s", 0)
    (result,) = renderer.render([row])
    if isinstance(result, TokenizedExample):
        return [result]
    assert can_be_split(row, result), result
    served = fit_as_prompted(row, result, 999, "drop", renderer)
    if isinstance(served, BadRow):
        raise served
    assert served.turns.with_reasoning == served.turns.trained
    return served.fitted.examples


def parts(template: str, *messages: Message) -> list[tuple[str, str]]:
    renderer = renderer_of(template)
    return trained_parts(renderer.tokenizer, *documents(renderer, *messages))


SECOND = "<|user|>Hi?<|assistant|>Yes.<|end|><|user|>So?<|assistant|>"


@pytest.mark.parametrize(
    ("template", "before", "said"),
    [
        (ALWAYS_THINKS, ("<think>\n", "<think>\n"), ("why\n</think>\n\nYes.", "hm\n</think>\n\nNo.")),
        (WRITES_BOTH, ("", ""), ("<think>\nwhy\n</think>\n\nYes.", "<think>\nhm\n</think>\n\nNo.")),
        (WHEN_ASKED, ("<think>", "<think>"), ("why</think>Yes.", "hm</think>No.")),
        (OWN_BLOCK, ("", ""), ("<think>why</think>Yes.", "<think>hm</think>No.")),
    ],
    ids=["begun", "not begun", "when asked", "own block"],
)
def test_each_turn_is_trained_with_its_reasoning_after_the_prompt(template, before, said):
    """And none of the earlier turns', which no server sends."""
    history = SECOND
    if template in (WHEN_ASKED, OWN_BLOCK):
        history = SECOND.replace("Yes.", "</think>Yes." if template == WHEN_ASKED else "<think></think>Yes.")
    assert parts(template, *TALK) == [
        (f"<|user|>Hi?<|assistant|>{before[0]}", f"{said[0]}<|end|>"),
        (f"{history}{before[1]}", f"{said[1]}<|end|>"),
    ]


@pytest.mark.parametrize("said", ["think", "a", "</think>", "?"])
def test_a_question_may_be_a_part_of_the_prompt(said):
    prompt = f"<|user|>{said}<|assistant|><think>\n"
    assert parts(ALWAYS_THINKS, Message("user", said), ANSWER) == [(prompt, "why\n</think>\n\nYes.<|end|>")]


def test_a_row_may_begin_with_an_answer():
    assert parts(ALWAYS_THINKS, ANSWER) == [("<|assistant|><think>\n", "why\n</think>\n\nYes.<|end|>")]


def test_reasoning_that_no_document_has_is_counted():
    renderer = renderer_of(ALWAYS_THINKS, train_on="last")
    row = Conversation(TALK, "s", 0)
    served = fit_as_prompted(row, BadRow("template_not_prefix", ""), 999, "drop", renderer)
    assert [(rewrite.name, rewrite.places) for rewrite in served.rewrites] == [("reasoning_left_out", 1)]


@pytest.mark.parametrize("field", [True, False], ids=["field", "inline"])
def test_reasoning_is_found_in_its_field_and_in_the_answer(field):
    inline = replace(ANSWER, content="<think>\nwhy\n</think>\n\nYes.", reasoning=None)
    assert parts(ALWAYS_THINKS, QUESTION, ANSWER if field else inline) == [
        ("<|user|>Hi?<|assistant|><think>\n", "why\n</think>\n\nYes.<|end|>")
    ]


def test_a_call_is_trained_with_its_reasoning_too():
    assert parts(ALWAYS_THINKS, *STEPS) == [
        ("<|user|>Hi?<|assistant|><think>\n", f"which\n</think>\n\n{CALL}<|end|>"),
        (
            f"<|user|>Hi?<|assistant|>{CALL}<|end|><|tool|>found<|assistant|><think>\n",
            "why\n</think>\n\nYes.<|end|>",
        ),
    ]


@pytest.mark.parametrize("before", [(QUESTION,), TALK[:3]], ids=["one", "talk"])
def test_an_answer_without_reasoning_says_what_to_do(before):
    with pytest.raises(BadRow, match=r"no_reasoning: .*<\|assistant\|><think>\\n'.*give it one"):
        parts(ALWAYS_THINKS, *before, Message("assistant", "No."))


def test_an_answer_without_reasoning_follows_the_prompt_of_a_model_that_was_not_asked_to_think():
    row = (QUESTION, replace(ANSWER, reasoning=None))
    (example,) = renderer_of(WHEN_ASKED).render([Conversation(row, "s", 0)])
    assert trained_parts(renderer_of(WHEN_ASKED).tokenizer, example) == [
        ("<|user|>Hi?<|assistant|></think>", "Yes.<|end|>")
    ]


def test_a_field_that_is_printed_only_when_asked_to_think_is_found():
    """So that such a row is one document."""
    renderer = renderer_of(FIELD_WHEN_ASKED)
    rows = [Conversation((QUESTION, answer), "s", 0) for answer in (ANSWER, replace(ANSWER, reasoning=None))]
    assert trained_parts(renderer.tokenizer, *renderer.render(rows)) == [
        ("<|user|>Hi?<|assistant|><think>", "why</think>Yes.<|end|>"),
        ("<|user|>Hi?<|assistant|></think>", "Yes.<|end|>"),
    ]


def test_what_a_whole_row_lacks_its_documents_may_have():
    """Also where it seems to be there, as the question says the same."""
    row = (QUESTION, replace(STEPS[1], reasoning="Hi"), *STEPS[2:])
    assert [said for _, said in parts(LAST_REASONING, *row)] == [
        f"<think>Hi</think>{CALL}<|end|>",
        "<think>why</think>Yes.<|end|>",
    ]


def test_an_answer_that_stands_alone_after_the_beginning_of_reasoning_is_none():
    """Where each last turn begins with the tag, as its prompt does (Nemotron Nano 2)."""
    template = ALWAYS_THINKS.replace("{{ m.content.split", "{{ '<think>\n' if loop.last }}{{ m.content.split")
    with pytest.raises(AssertionError, match="no_reasoning"):
        parts(template, QUESTION, replace(ANSWER, reasoning=None))
    assert parts(template, QUESTION, ANSWER) == [("<|user|>Hi?<|assistant|><think>\n", "why\n</think>\n\nYes.<|end|>")]


def test_trls_variant_is_passed_over_where_its_prompt_fits_none_of_its_turns():
    """That of DeepSeek V3 marks `<|Assistant|>` as said by the model, and prompts with more than that."""
    found = parts(published("deepseekv3"), QUESTION, ANSWER)
    assert found == [("<bos><｜User｜>Hi?<｜Assistant｜><think>\n", "why\n</think>\n\nYes.<｜end▁of▁sentence｜>")]


def test_reasoning_is_written_as_the_template_shows():
    assert written_as("<a><think>\n\n</think>\n\n", ["<a>"]) == WrittenReasoning("<think>\n", "\n</think>\n\n")
    assert written_as("<a><think></think>", ["<a><think>\n"]) == WrittenReasoning("<think>", "</think>")
    assert written_as("<a>", ["<a></think>", "<a><think>"]) == WrittenReasoning("<think>", "</think>")
    assert written_as("<a>", ["<a>"]) == WrittenReasoning("<think>\n", "\n</think>\n\n")
