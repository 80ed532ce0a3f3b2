"""`chat_template: tokenizer` with the templates of today's model families, as they are published.

TRL carries them, with variants for training. Each trained turn is compared with what the published template prompts the
model with, and ours with TRL's variants: an upgrade that changes either is seen here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.chat_templates import ChatTemplate, resolve_chat_template
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.prompted_turns import can_be_split, fit_as_prompted
from data_prep.rendering.renderer import Renderer
from tests.support.published_templates import published, tokenizer_for
from tests.support.trained_parts import trained_parts

WORD = {"type": "object", "properties": {"word": {"type": "string", "description": "any"}}, "required": ["word"]}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks it up.", "parameters": WORD}}]
LOOK_UP = ToolCall("look_up", {"word": "cat"})


def question(number: int = 0) -> Message:
    return Message("user", f"Question {number}?")


def answer(number: int = 0, reasoning: str | None = None) -> Message:
    return Message("assistant", f"Answer {number}.", reasoning=reasoning)


def call(reasoning: str | None = None) -> Message:
    return Message("assistant", "", reasoning=reasoning, tool_calls=(LOOK_UP,))


FOUND = Message("tool", "found")
ROWS = {
    "one": (question(), answer()),
    "talk": (question(), answer(), question(1), answer(1)),
    "system": (Message("system", "Be kind."), question(), answer(), question(1), answer(1)),
    "reasoning": (question(), answer(0, "why 0")),
    "reasonings": (question(), answer(0, "why 0"), question(1), answer(1, "why 1")),
    "call": (question(), call(), FOUND, answer()),
    "call_then_talk": (question(), call(), FOUND, answer(), question(1), answer(1)),
    "call_with_reasoning": (question(), call("which word"), FOUND, answer(0, "it is there")),
}
CALLS = ("call", "call_then_talk", "call_with_reasoning")
NO_TOOLS = dict.fromkeys(CALLS, "tools_not_in_template")
LOSES = "left_out_by_template"
SPLIT = "split"
GEMMA4 = dict.fromkeys(("reasoning", "reasonings", "call_with_reasoning"), SPLIT)  # reasoning next to calls alone
R1 = {**dict.fromkeys(("one", "talk", "system"), "no_reasoning"), **NO_TOOLS}
# By template: what becomes of the rows that are not taken as they are.
FAMILIES = {
    "cohere2": NO_TOOLS,
    "deepseek_r1_distill": R1,
    "deepseekv3": {**R1, "reasoning": SPLIT, "reasonings": SPLIT},
    "gemma": {"system": "template_refused", **NO_TOOLS},
    "gemma3": NO_TOOLS,
    "gemma4": GEMMA4,
    "gemma4_v2": {},
    "gemma4_v4": GEMMA4,
    "gemma4_v5": {"reasonings": SPLIT},
    "glm4moe": {},
    "gptoss": {"call_with_reasoning": SPLIT},
    "lfm2": NO_TOOLS,
    "lfm2_v2": {},
    "lfm2_2_5": {},
    "lfm2_2_5_v2": {},
    "llama3": NO_TOOLS,
    "llama3_1": {"call_with_reasoning": LOSES},
    "llama3_2": {"call_with_reasoning": LOSES},
    "muse_glimmer": {},
    "nemotron_3_nano": {},
    "nemotron_3_super": {},
    "nemotron_3_ultra": {},
    "nemotron_3_5_lightning": {},
    "phi3": NO_TOOLS,
    "phi3_5": NO_TOOLS,
    "qwen2_5": {},
    "qwen3": {},
    "qwen3_instruct_2507": {},
    "qwen3_5_nothink": {},
    "qwen3_5_think": {},
    "qwen3_6": {},
    "qwen3_8": {},
}


@functools.cache
def renderer_of(name: str) -> Renderer:
    tokenizer = tokenizer_for(published(name))
    return Renderer(tokenizer, resolve_chat_template("tokenizer", tokenizer))


def conversation(row: str) -> Conversation:
    return Conversation(ROWS[row], "s", 0, tuple(TOOLS) if row in CALLS else ())


def documents(renderer: Renderer, row: str) -> tuple[str, list[TokenizedExample]]:
    """What became of a row, and its documents."""
    talk = conversation(row)
    (result,) = renderer.render([talk])
    if isinstance(result, BadRow) and can_be_split(talk, result):
        served = fit_as_prompted(talk, result, 4096, "drop", renderer)
        return (served.reason, []) if isinstance(served, BadRow) else (SPLIT, served.fitted.examples)
    return (result.reason, []) if isinstance(result, BadRow) else ("taken", [result])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_becomes_of_a_row(name, row):
    assert documents(renderer_of(name), row)[0] == FAMILIES[name].get(row, "taken")


@pytest.mark.parametrize("row", [row for row in ROWS if row != "reasonings"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_turn_is_trained_after_what_a_server_prompts_with(name, row):
    renderer = renderer_of(name)
    _, examples = documents(renderer, row)
    found = trained_parts(renderer.tokenizer, *examples)
    assert not examples or len(found) == len(list(served(renderer.template.text, row, renderer)))
    for (before, said), prompts in zip(found, served(renderer.template.text, row, renderer), strict=False):
        assert before in prompts, said


def served(template: str, row: str, renderer: Renderer) -> Iterator[list[str]]:
    """What a server with this template prompts each turn with: a model that shall think, and one that shall not."""
    apply = AppliedTemplate(ChatTemplate(template, "served", has_marks=False), renderer.tokenizer.special_tokens_map)
    apply.makes_call_ids = renderer._apply.makes_call_ids
    talk = conversation(row)
    messages = renderer._template_messages(talk)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            yield [apply(messages[:i], list(talk.tools) or None, prompt=True, thinks=t)[0] for t in (None, True, False)]


# Of a document of TRL's variant: what ours leaves to the tokenizer, to the row, or out.
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
DIFFERS = {
    ("qwen3", "qwen3"): (),
    ("qwen2_5", "qwen2_5"): (f"<|im_start|>system\n{_QWEN}<|im_end|>\n", f"{_QWEN}\n\n"),
    ("llama3", "llama3"): ("<bos>",),
    ("phi", "phi3"): ("\n<|end|>",),  # TRL's trains a second end at the end of a row
    ("phi", "phi3_5"): ("\n<|end|>",),
    ("gemma", "gemma"): ("<bos>",),
    ("gemma", "gemma3"): ("<bos>",),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize(("ours", "theirs"), DIFFERS)
def test_built_in_templates_equal_trls_variants_for_training(ours, theirs, row):
    """But for what is listed above."""
    tokenizer = tokenizer_for(published(theirs))
    own, other = Renderer(tokenizer, resolve_chat_template(ours, tokenizer)), renderer_of(theirs)
    became, expected = documents(own, row), documents(other, row)
    assert became[0] == expected[0] or (theirs, row) == (
        "gemma",
        "system",
    )  # ours puts the system prompt before the question
    for example, reference in zip(became[1], expected[1], strict=False):
        assert tokenizer.decode(example.input_ids).rstrip() == without(
            DIFFERS[ours, theirs], tokenizer.decode(reference.input_ids)
        )
        said = [said for _, said in trained_parts(tokenizer, example)]
        assert said == [without(DIFFERS[ours, theirs], said) for _, said in trained_parts(tokenizer, reference)]


def without(parts: tuple[str, ...], text: str) -> str:
    for part in parts:
        text = text.replace(part, "", 1) if not part.startswith("\n") else text.removesuffix(part)
    return text.rstrip()
