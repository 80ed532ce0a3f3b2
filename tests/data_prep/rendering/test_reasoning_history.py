"""Rows with reasoning in earlier turns: each turn is trained once, after what a server would prompt it with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import trl

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import ChatTemplate, resolve_chat_template
from data_prep.rendering.labels import Turns
from data_prep.rendering.reasoning_history import as_served, fit_as_served
from data_prep.rendering.renderer import Renderer
from tests.support.trained_parts import trained_parts
from tests.support.word_tokenizer import TOOLS

TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SYSTEM = Message("system", "Be kind.")


def exchange(number: int, reasoning: str | None, **more) -> tuple[Message, Message]:
    return (
        Message("user", f"Question {number}?"),
        Message("assistant", f"Answer {number}.", reasoning=reasoning, **more),
    )


TALK = (SYSTEM, *exchange(0, None), *exchange(1, "reason 1"), *exchange(2, None), *exchange(3, "reason 3"))
STEPS = (
    *exchange(0, "reason 0"),
    Message("user", "Look it up."),
    Message("assistant", "", reasoning="which word", tool_calls=(ToolCall("look_up", {}),)),
    Message("tool", "found"),
    Message("assistant", "Done.", reasoning="it is there"),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    own = copy.deepcopy(tiny_tokenizer)
    own.add_tokens(["<think>", "</think>"])
    return own


def renderer_of(name: str, tokenizer, **options) -> Renderer:
    if name in ("qwen3", "chatml"):
        return Renderer(tokenizer, resolve_chat_template(name, tokenizer), **options)
    text = (TRL_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return Renderer(tokenizer, ChatTemplate(text, name, has_marks=True), **options)


def served(renderer: Renderer, *messages: Message, tools=(), seq_len: int = 4096, policy: str = "drop"):
    talk = Conversation(messages, "s", 0, tools)
    (whole,) = renderer.render([talk])
    return fit_as_served(talk, whole, seq_len, policy, renderer)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_training", "nemotron_3_nano_training", "nemotron_3_ultra_training"])
def test_each_turn_is_trained_once_after_the_prompt_that_a_server_makes(tokenizer, name):
    renderer = renderer_of(name, tokenizer)
    result = served(renderer, *TALK)
    found = trained_parts(tokenizer, *result.fitted.examples)
    assert len(result.fitted.examples) == 2 and len(found) == 4
    answers = [i for i, m in enumerate(TALK) if m.role == "assistant"]
    for i, (before, own) in zip(answers, found, strict=True):
        history = [{"role": m.role, "content": m.content} for m in TALK[:i]]
        prompt = tokenizer.apply_chat_template(
            history,
            chat_template=renderer.template.text,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=TALK[i].reasoning is not None,
        )
        assert before == prompt
        assert TALK[i].content in own and (TALK[i].reasoning or "Answer") in own
    assert result.turns == Turns(4, 2, 2, 0)
    assert result.rewrites == (("reasoning_history_split", 2, 0),)


def test_the_steps_of_one_exchange_keep_their_reasoning(tokenizer):
    result = served(renderer_of("qwen3", tokenizer), *STEPS, tools=TOOLS)
    first, (before, call), (between, done) = trained_parts(tokenizer, *result.fitted.examples)
    assert "reason 0" in first[1] and "reason 0" not in between
    assert "which word" in call and "which word" in between and "it is there" in done
    assert "Answer 0." in before


@pytest.mark.parametrize(
    "messages",
    [(*exchange(0, None), *exchange(1, None)), (*exchange(0, None), *exchange(1, "reason"))],
    ids=["none", "only the last"],
)
def test_rows_that_need_it_not_stay_as_they_are(tokenizer, messages):
    talk = Conversation(messages, "s", 0)
    assert as_served(talk, "all")[0] is talk
    renderer = renderer_of("qwen3", tokenizer)
    result, (whole,) = served(renderer, *messages), renderer.render([talk])
    (example,) = result.fitted.examples
    assert example.labels.tolist() == whole.labels.tolist() and result.rewrites == whole.rewrites == ()


@pytest.mark.parametrize(
    ("train_on", "trained"),
    [("all", ["Answer 0.", "Answer 2.", "Answer 3."]), ("last", ["Answer 3."]), ("flags", ["Answer 3."])],
)
def test_which_turns_are_trained_stays_as_it_was(tokenizer, train_on, trained):
    talk = (
        *exchange(0, "reason 0"),
        *exchange(1, "reason 1", train=False),
        *exchange(2, None),
        *exchange(3, "reason 3", train=True),
    )
    result = served(renderer_of("qwen3", tokenizer, train_on=train_on), *talk)
    found = trained_parts(tokenizer, *result.fitted.examples)
    assert [own.split("</think>\n\n")[-1] for _, own in found] == [f"{answer}<|im_end|>" for answer in trained]


def test_reasoning_inside_answers_is_found_too(tokenizer):
    inline = (Message("user", "Why?"), Message("assistant", "<think>\nhm\n</think>\n\nSo."), *exchange(1, None))
    found = trained_parts(tokenizer, *served(renderer_of("chatml", tokenizer), *inline).fitted.examples)
    assert [own for _, own in found] == ["<think>\nhm\n</think>\n\nSo.<|im_end|>", "Answer 1.<|im_end|>"]
    assert "hm" not in found[1][0] and "So." in found[1][0]


def test_each_document_has_to_fit(tokenizer):
    renderer = renderer_of("qwen3", tokenizer)
    sizes = [e.input_ids.size for e in served(renderer, *TALK).fitted.examples]
    (whole,) = renderer.render([Conversation(TALK, "s", 0)])
    assert max(sizes) < whole.input_ids.size
    assert served(renderer, *TALK, seq_len=max(sizes)).fitted.how is None
    with pytest.raises(BadRow, match="too_long"):
        served(renderer, *TALK, seq_len=max(sizes) - 1)
