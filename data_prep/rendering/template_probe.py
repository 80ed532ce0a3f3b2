"""Properties of a chat template, found by rendering one short conversation. What fails on it fails on every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.reasoning import inline
from data_prep.shards import IGNORE_INDEX

REASONING = "They greet me."
QUESTION, ANSWER = Message("user", "Say hello."), Message("assistant", "Hello.")
_ARGUMENTS: dict[str, Any] = {"word": "hello", "times": None}
PARTS = "parts"  # reasoning and answer as a list of typed contents
_PLACES = ("reasoning_content", "reasoning", "thinking", "thought", PARTS)

Render = Callable[[Sequence[Conversation]], "list[TokenizedExample | BadRow]"]


def reasoning_place(apply: AppliedTemplate) -> str | None:
    """The field of a message whose reasoning the template prints, in an answer or next to a call; PARTS; or None."""
    question, answer = QUESTION.as_dict(), ANSWER.as_dict()
    call = {**answer, "content": "", "tool_calls": [ToolCall("look_up", {}).as_dict()]}
    for place in _PLACES:
        for turn in (answer, call):
            with suppress(BadRow):
                text, _ = apply([question, with_reasoning(turn, REASONING, place)], None)
                # A list that is printed as it is holds the names of its keys.
                if REASONING in text and not (place == PARTS and ("'type'" in text or '"type"' in text)):
                    return place
    return None


def with_reasoning(message: dict[str, Any], reasoning: str, place: str) -> dict[str, Any]:
    """A message in the form that templates take, with its reasoning at a place of `reasoning_place`."""
    if place != PARTS:
        return {**message, place: reasoning}
    parts = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": message["content"]}]
    return {**message, "content": parts}


def takes_json_text(apply: AppliedTemplate) -> bool:
    """Whether a call's arguments have to be JSON text, as the template prints an object as Python, or not at all."""
    text = json.dumps(_ARGUMENTS)
    return str(_ARGUMENTS) in _printed(apply, _ARGUMENTS) or (
        not _printed(apply, _ARGUMENTS) and text in _printed(apply, text)
    )


def _printed(apply: AppliedTemplate, arguments: Any) -> str:
    """An answer with a call, and nothing where the template refuses it."""
    call = {"type": "function", "function": {"name": "look_up", "arguments": arguments}}
    with suppress(BadRow):
        return apply([QUESTION.as_dict(), {"role": "assistant", "content": "", "tool_calls": [call]}], None)[0]
    return ""


class Given(NamedTuple):
    """What stands both in a generation prompt and in the marks: the model is given it, so it is not trained.

    Attributes:
        prefix: after a question, with the beginning of the reasoning where the prompt holds it.
        opening: the same, where the model is asked to think.
        header: the part of it that a turn without reasoning begins with; such a turn is none that the model is prompted
            for. None where such turns begin with all of it, or with an empty block of reasoning.
        after_tool: after the result of a call, where that is something else.
    """

    prefix: str = ""
    opening: str = ""
    header: str | None = None
    after_tool: str = ""


def given_of_answers(template: ChatTemplate, apply: AppliedTemplate, place: str | None) -> Given:
    """What the model is given of its answers.

    Args:
        place: see `reasoning_place`. A generation prompt may begin the reasoning: then only a turn with one fits it.

    Raises:
        ValueError: the marks begin after the generation prompt ends, so the model would have to begin its answer
            with text it is never trained on.
    """
    if not template.has_marks:
        return Given()
    answer = ANSWER.as_dict()
    thinks = (
        with_reasoning(answer, REASONING, place) if place else {**answer, "content": inline(REASONING, ANSWER.content)}
    )
    try:
        rendered = [apply([QUESTION.as_dict(), turn], None, with_spans=True) for turn in (answer, thinks)]
        prompt, asked = (apply([QUESTION.as_dict()], None, prompt=True, thinks=thinks)[0] for thinks in (None, True))
    except BadRow:
        return Given()  # `end_token_ids` says it better
    if not all(spans for _, spans in rendered):
        return Given()
    fits = [_begins_with(text, prompt, spans[0][0]) for text, spans in rendered]
    text, spans = rendered[0]
    start = spans[0][0]
    if not any(fits):
        raise ValueError(
            f"chat_template {template.origin!r}: what is trained begins after {text[:start][-40:]!r}, but the "
            f"generation prompt ends in {prompt[-40:]!r}: at inference the model would begin with text that it was "
            "never trained on. Let `add_generation_prompt` end where `{% generation %}` begins"
        )
    needs_reasoning = not fits[0] and place is None
    header = _common(prompt, text)[start:] if needs_reasoning else None
    prefix, opening = prompt[rendered[fits.index(True)][1][0][0] :], ""
    if _begins_with(rendered[1][0], asked, rendered[1][1][0][0]):
        opening = asked[rendered[1][1][0][0] :]
    after_tool = _given_after_tool(apply)
    return Given(prefix, opening, header, "" if after_tool in (prefix, opening) else after_tool)


def says_not_to_think(apply: AppliedTemplate) -> bool:
    """Whether the template prints otherwise, and not only in the generation prompt, that a model shall not think: GLM's
    in the question, Qwen 3.8's in the system prompt."""
    try:
        texts = [apply([QUESTION.as_dict(), ANSWER.as_dict()], None, thinks=thinks)[0] for thinks in (None, False)]
    except BadRow:
        return False
    return texts[0] != texts[1]


def _given_after_tool(apply: AppliedTemplate) -> str:
    call = {"role": "assistant", "content": "", "tool_calls": [ToolCall("look_up", {}).as_dict()]}
    before = [QUESTION.as_dict(), call, {"role": "tool", "content": "found"}]
    try:
        text, spans = apply([*before, ANSWER.as_dict()], None, with_spans=True)
        prompt, _ = apply(before, None, prompt=True)
    except BadRow:
        return ""
    return prompt[spans[-1][0] :] if spans and _begins_with(text, prompt, spans[-1][0]) else ""


def _common(first: str, second: str) -> str:
    """The text that both begin with."""
    pairs = zip(first, second, strict=False)
    return first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]


def _begins_with(text: str, prompt: str, start: int) -> bool:
    """Whether a text begins with the prompt, and the prompt reaches as far as what is marked."""
    return text.startswith(prompt) and len(prompt) >= start


def end_token_ids(template: ChatTemplate, tokenizer: str, given: Given, render: Render) -> list[int]:
    """The ids that end a turn.

    Args:
        tokenizer: its name, for the message.
        given: what the model is given of its answers.

    Raises:
        ValueError: the conversation cannot be rendered and labelled.
    """
    reasoning = None if given.header is None else REASONING
    flagged = Message("assistant", ANSWER.content, train=True, reasoning=reasoning)
    example = render([Conversation((QUESTION, flagged), "probe", 0)])[0]
    if isinstance(example, BadRow):
        raise ValueError(
            f"chat_template {template.origin!r} cannot be trained on with the tokenizer "
            f"{tokenizer!r}: {example.detail} ({example.reason})"
        )
    trained = example.input_ids[example.labels != IGNORE_INDEX]
    return [int(trained[-1])]
