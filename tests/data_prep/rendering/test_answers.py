"""Reasoning inside answers: where it goes, what is cut off, and what is counted of answers that are changed."""

from __future__ import annotations

import pytest

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.chat_templates import ChatTemplate, resolve_chat_template
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.rewrites import Rewrite
from data_prep.shards import IGNORE_INDEX

USER = Message("user", "Six times seven?")
INLINE = Message("assistant", "<think>\nsix sevens\n</think>\n\n  42")
FIELD = Message("assistant", "  42", reasoning="six sevens")
SENT = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' %}{%- generation %}"
    "{{- ANSWER + '<|im_end|>' }}{%- endgeneration %}{%- else %}{{- m.content }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
PLACES = {
    "thinking": "('[' + m.thinking + ']' if m.thinking else '') + m.content",
    "thought": "('[' + m.thought + ']' if m.thought else '') + m.content",
    "reasoning": "('[' + m.get('reasoning') + ']' if m.get('reasoning') else '') + m.content",
    "parts": "(m.content if m.content is string else '[' + m.content[0].thinking + ']' + m.content[1].text)",
}


def outcome(renderer: Renderer, *messages: Message):
    """The trained text and what was rewritten, or the reason why the row is dropped."""
    (result,) = renderer.render([Conversation(messages, "s", 0)])
    if isinstance(result, BadRow):
        return result.reason
    return renderer.tokenizer.decode([i for i in result.labels.tolist() if i != IGNORE_INDEX]), result.rewrites


@pytest.fixture(scope="module")
def chatml(tiny_tokenizer):
    return Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("message", [INLINE, FIELD], ids=["inline", "field"])
def test_reasoning_goes_where_the_template_puts_it(tiny_tokenizer, place, message):
    renderer = Renderer(tiny_tokenizer, ChatTemplate(SENT.replace("ANSWER", PLACES[place]), place, has_marks=True))
    inner = "\nsix sevens\n" if message is INLINE else "six sevens"
    assert outcome(renderer, USER, message) == (f"[{inner}]  42<|im_end|>", ())


@pytest.mark.parametrize("message", [INLINE, FIELD], ids=["inline", "field"])
def test_without_a_place_it_stands_in_the_answer(chatml, message):
    assert outcome(chatml, USER, message) == ("<think>\nsix sevens\n</think>\n\n  42<|im_end|>", ())


@pytest.mark.parametrize("policy", ["keep", "strip"])
@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message("assistant", "<think>never closed"), "unclosed_reasoning"),
        (Message("assistant", " <think>\n"), "unclosed_reasoning"),
        (Message("assistant", "<think>closed</think>\n"), "empty_output"),
        (Message("assistant", "<think>this</think>4", reasoning="another"), "unclear_reasoning"),
    ],
)
def test_an_answer_that_was_cut_off_is_dropped(tiny_tokenizer, policy, message, reason):
    renderer = Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer), reasoning=policy)
    if policy == "strip" and reason == "unclear_reasoning":
        assert outcome(renderer, USER, message)[0] == "4<|im_end|>"  # whichever it is, both go
    else:
        assert outcome(renderer, USER, message) == reason


def test_the_same_reasoning_twice_is_printed_once(chatml):
    both = Message("assistant", "<think>hm</think>4", reasoning="hm")
    assert outcome(chatml, USER, both)[0] == "<think>\nhm\n</think>\n\n4<|im_end|>"
    stray = Message("assistant", "4\n</think>", reasoning="hm")  # a closing tag that closes nothing
    assert outcome(chatml, USER, stray)[0] == "<think>\nhm\n</think>\n\n4\n</think><|im_end|>"


def test_stripped_reasoning_is_counted_with_its_tokens(tiny_tokenizer):
    renderer = Renderer(tiny_tokenizer, resolve_chat_template("chatml", tiny_tokenizer), reasoning="strip")
    size = len(tiny_tokenizer("\nsix sevens\n").input_ids)
    assert outcome(renderer, USER, INLINE) == ("  42<|im_end|>", (Rewrite("reasoning_stripped", 1, size),))


def test_reasoning_that_the_template_leaves_out_of_earlier_turns_is_counted(tiny_tokenizer):
    text = SENT.replace("ANSWER", "('[' + m.thinking + ']' if m.thinking and loop.last else '') + m.content")
    renderer = Renderer(tiny_tokenizer, ChatTemplate(text, "last", has_marks=True))
    trained, rewrites = outcome(renderer, USER, FIELD, USER, FIELD)
    assert trained == "  42<|im_end|>[six sevens]  42<|im_end|>"
    assert [(r.name, r.places) for r in rewrites] == [("reasoning_left_out", 1)]


LEADING = Message("assistant", "\n    return x\n\n")


@pytest.mark.parametrize(
    ("printed", "trained", "names"),
    [
        ("m.content | trim", "return x", ["answer_start_trimmed", "answer_end_trimmed"]),
        ("m.content.lstrip('\\n')", "    return x\n\n", ["answer_start_trimmed"]),
        ("m.content.rstrip()", "\n    return x", ["answer_end_trimmed"]),
        ("m.content", "\n    return x\n\n", []),
        ("'- ' + m.content", "- \n    return x\n\n", []),
    ],
)
def test_blanks_that_a_template_does_not_print_are_counted(tiny_tokenizer, printed, trained, names):
    text = SENT.replace("ANSWER", printed).replace("'assistant\\n' }}", "'assistant' }}")
    text = text.replace("m.role + '\\n'", "m.role + '<|im_start|>'").replace("assistant\\n", "assistant<|im_start|>")
    renderer = Renderer(tiny_tokenizer, ChatTemplate(text, "mine", has_marks=True))
    found, rewrites = outcome(renderer, USER, LEADING)
    assert found == f"{trained}<|im_end|>" and [r.name for r in rewrites] == names
    assert all(r.lost_tokens > 0 for r in rewrites)


def test_prompts_that_are_trimmed_are_counted_too(tiny_tokenizer):
    text = SENT.replace("{{- m.content }}", "{{- m.content | trim }}").replace("ANSWER", "m.content")
    renderer = Renderer(tiny_tokenizer, ChatTemplate(text, "mine", has_marks=True))
    _, rewrites = outcome(renderer, Message("user", " q \n"), Message("assistant", "a"))
    assert [(r.name, r.places) for r in rewrites] == [("prompt_trimmed", 2)]
