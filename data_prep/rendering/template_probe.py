"""Properties of a chat template, found by rendering one short conversation. What fails on it fails on every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.labels import TokenizedExample
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


def answer_prefix(template: ChatTemplate, apply: AppliedTemplate, place: str | None) -> str:
    """What stands both in the generation prompt and in the marks: the model is given it, so it is not trained.

    Args:
        place: see `reasoning_place`. A generation prompt may begin the reasoning: then only a turn with one fits it.

    Raises:
        ValueError: the marks begin after the generation prompt ends, so the model would have to begin its answer
            with text it is never trained on.
    """
    answer = ANSWER.as_dict()
    answers = [answer] if place is None else [answer, with_reasoning(answer, REASONING, place)]
    try:
        rendered = [apply([QUESTION.as_dict(), answer], None, with_spans=True) for answer in answers]
        prompt, _ = apply([QUESTION.as_dict()], None, prompt=True)
    except BadRow:
        return ""  # `end_token_ids` says it better
    if not template.has_marks or not all(spans for _, spans in rendered):
        return ""
    fitting = (prompt[spans[0][0] :] for text, spans in rendered if _begins_with(text, prompt, spans[0][0]))
    prefix = next(fitting, None)
    if prefix is None:
        text, start = rendered[0][0], rendered[0][1][0][0]
        raise ValueError(
            f"chat_template {template.origin!r}: what is trained begins after {text[:start][-40:]!r}, but the "
            f"generation prompt ends in {prompt[-40:]!r}: at inference the model would begin with text that it was "
            "never trained on. Let `add_generation_prompt` end where `{% generation %}` begins"
        )
    return prefix


def _begins_with(text: str, prompt: str, start: int) -> bool:
    """Whether a text begins with the prompt, and the prompt reaches as far as what is marked."""
    return text.startswith(prompt) and len(prompt) >= start


def end_token_ids(template: ChatTemplate, tokenizer: str, render: Render) -> list[int]:
    """The ids that end a turn.

    Args:
        tokenizer: its name, for the message.

    Raises:
        ValueError: the conversation cannot be rendered and labelled.
    """
    flagged = Message("assistant", ANSWER.content, train=True)
    example = render([Conversation((QUESTION, flagged), "probe", 0)])[0]
    if isinstance(example, BadRow):
        raise ValueError(
            f"chat_template {template.origin!r} cannot be trained on with the tokenizer "
            f"{tokenizer!r}: {example.detail} ({example.reason})"
        )
    trained = example.input_ids[example.labels != IGNORE_INDEX]
    return [int(trained[-1])]
