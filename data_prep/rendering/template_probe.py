"""Properties of a chat template, found by rendering one short conversation. What fails on it fails on every row."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.call_ids import with_call_ids
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.generation_prompts import Closings, after_last, closing_of, common_start, footer_of
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.reasoning import PARTS, TAG_END, inline, with_reasoning
from data_prep.rendering.written_reasoning import WrittenReasoning, is_printed, written_as
from data_prep.shards import IGNORE_INDEX

REASONING = "They greet me."
QUESTION, ANSWER = Message("user", "Say hello."), Message("assistant", "Hello.")
CALLING, RESULT = Message("assistant", "", tool_calls=(ToolCall("look_up", {}),)), Message("tool", "found")
_ARGUMENTS: dict[str, Any] = {"word": "hello", "times": None}
_PLACES = ("reasoning_content", "reasoning", "thinking", "thought", PARTS)

_ENDS_IN_PROMPT = (
    "chat_template {!r} prints the header of a next answer after the last one, and no token between them is known to "
    "end turns, so a model would learn to write the header. Expected it with `add_generation_prompt` alone: use a "
    "built-in template, or mend a copy in a .jinja file"
)

Render = Callable[[Sequence[Conversation]], "list[TokenizedExample | BadRow]"]


def reasoning_place(apply: AppliedTemplate) -> str | None:
    """The field of a message whose reasoning the template prints, in an answer or next to a call; PARTS; or None. Some
    print none unless the model is asked to think (DeepSeek V3.2)."""
    turns = [message.as_dict() for message in (ANSWER, CALLING)]
    tried = ((thinks, place, turn) for thinks in (None, True) for place in _PLACES for turn in turns)
    return next((place for thinks, place, turn in tried if _prints_at(apply, turn, place, thinks)), None)


def _prints_at(apply: AppliedTemplate, turn: dict[str, Any], place: str, thinks: bool | None) -> bool:
    """Whether the template prints the reasoning of a turn."""
    with suppress(BadRow):
        text, _ = apply([QUESTION.as_dict(), with_reasoning(turn, REASONING, place)], None, thinks=thinks)
        # A list that is printed as it is holds the names of its keys.
        return REASONING in text and not (place == PARTS and ("'type'" in text or '"type"' in text))
    return False


def needs_call_ids(apply: AppliedTemplate) -> bool:
    """Whether the template takes calls only with ids, or tells their results apart by them without printing them
    (Command R7B)."""
    calling = replace(CALLING, tool_calls=CALLING.tool_calls * 2)
    messages = [message.as_dict() for message in (QUESTION, calling, RESULT, RESULT)]
    with_ids = with_call_ids(messages)
    plain, identified = (_text_of(apply, tried) for tried in (messages, with_ids))
    printed = [call["id"] for call in with_ids[1]["tool_calls"] if call["id"] in identified]
    return bool(identified) and plain != identified and not (plain and printed)


def _text_of(apply: AppliedTemplate, messages: list[dict[str, Any]]) -> str:
    """The text; nothing where the template refuses the messages."""
    with suppress(BadRow):
        return apply(messages, None)[0]
    return ""


def takes_json_text(apply: AppliedTemplate) -> bool:
    """Whether a call's arguments have to be JSON text, as the template prints an object as Python, or not at all."""
    text = json.dumps(_ARGUMENTS)
    return str(_ARGUMENTS) in _printed(apply, _ARGUMENTS) or (
        not _printed(apply, _ARGUMENTS) and text in _printed(apply, text)
    )


def _printed(apply: AppliedTemplate, arguments: Any) -> str:
    """An answer with a call, and nothing where the template refuses it."""
    call = {"type": "function", "function": {"name": "look_up", "arguments": arguments}}
    return _text_of(apply, [QUESTION.as_dict(), {"role": "assistant", "content": "", "tool_calls": [call]}])


class Given(NamedTuple):
    """What stands both in a generation prompt and in the marks: the model is given it, so it is not trained.

    Attributes:
        prefix: after a question, with the beginning of the reasoning where the prompt holds it.
        opening: the same, where the model is asked to think.
        silent: the same, where it is asked not to.
        header: the part of it that a turn without reasoning begins with; such a turn is none that the model is prompted
            for. None where such turns begin with all of it, or with an empty block of reasoning.
        after_tool: after the result of a call, where that is something else.
    """

    prefix: str = ""
    opening: str = ""
    silent: str = ""
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
        rendered = [
            apply([QUESTION.as_dict(), turn], None, with_spans=True, thinks=asked)
            for turn, asked in ((answer, None), (thinks, None), (answer, False), (thinks, True))
        ]
        prompt, asked, asked_not = (
            apply([QUESTION.as_dict()], None, prompt=True, thinks=thinks)[0] for thinks in (None, True, False)
        )
    except BadRow:
        return Given()  # `end_token_ids` says it better
    if not all(spans for _, spans in rendered):
        return Given()
    (text, start), (reasoned, after), silent, thinking = ((text, spans[0][0]) for text, spans in rendered)
    fits = [_begins_with(text, prompt, start), _begins_with(reasoned, prompt, after)]
    if not any(fits):
        raise ValueError(
            f"chat_template {template.origin!r}: what is trained begins after {text[:start][-40:]!r}, but the "
            f"generation prompt ends in {prompt[-40:]!r}: at inference the model would begin with text that it was "
            "never trained on. Let `add_generation_prompt` end where `{% generation %}` begins"
        )
    needs_reasoning = not fits[0] and place is None
    after_tool = _given_after_tool(apply)
    given = Given(
        prompt[(start if fits[0] else after) :],
        _rest_of(asked, *thinking),
        _rest_of(asked_not, *silent),
        common_start(prompt, text)[start:] if needs_reasoning else None,
    )
    return given if after_tool in given else given._replace(after_tool=after_tool)


def says_not_to_think(apply: AppliedTemplate) -> bool:
    """Whether the template prints otherwise, and not only in the generation prompt, that a model shall not think: GLM's
    in the question, Qwen 3.8's in the system prompt."""
    try:
        texts = [apply([QUESTION.as_dict(), ANSWER.as_dict()], None, thinks=thinks)[0] for thinks in (None, False)]
    except BadRow:
        return False
    return texts[0] != texts[1]


def has_to_be_asked_to_think(apply: AppliedTemplate, place: str | None) -> bool:
    """Whether a turn with reasoning continues the prompt for a model that is asked to think, and not the usual one."""
    if place is None:
        return False
    question, turn = QUESTION.as_dict(), with_reasoning(ANSWER.as_dict(), REASONING, place)
    try:
        usual, asked = (
            (apply([question, turn], None, thinks=thinks)[0], apply([question], None, prompt=True, thinks=thinks)[0])
            for thinks in (None, True)
        )
    except BadRow:
        return False
    follows, follows_usual = (text.startswith(prompt) and REASONING in text for text, prompt in (asked, usual))
    return follows and not follows_usual


def _given_after_tool(apply: AppliedTemplate) -> str:
    before = [message.as_dict() for message in (QUESTION, CALLING, RESULT)]
    try:
        text, spans = apply([*before, ANSWER.as_dict()], None, with_spans=True)
        prompt, _ = apply(before, None, prompt=True)
    except BadRow:
        return ""
    return _rest_of(prompt, text, spans[-1][0]) if spans else ""


def _rest_of(prompt: str, text: str, start: int) -> str:
    """What of a prompt stands in the marks of the text, that begin at `start`; nothing where the text is another."""
    return prompt[start:] if _begins_with(text, prompt, start) else ""


def _begins_with(text: str, prompt: str, start: int) -> bool:
    """Whether a text begins with the prompt, and the prompt reaches as far as what is marked."""
    return text.startswith(prompt) and len(prompt) >= start


def closings(template: ChatTemplate, apply: AppliedTemplate, tokens: Collection[str]) -> Closings:
    """What the template prints at the end of a turn only once the next one is there; nothing where marks say it.

    Args:
        tokens: the control tokens.
    """
    if template.has_marks:
        return Closings()
    return Closings(_closing(apply, (ANSWER, QUESTION), tokens), _closing(apply, (CALLING, RESULT), tokens))


def _closing(apply: AppliedTemplate, turns: tuple[Message, Message], tokens: Collection[str]) -> str:
    """See `closings`, for a turn and what follows it; nothing where the turn's text already ends in a control token."""
    messages = [message.as_dict() for message in (QUESTION, *turns)]
    with suppress(BadRow):
        text, followed = (apply(part, None)[0] for part in (messages[:-1], messages))
        is_ended = not text.endswith(turns[0].content) or text.rstrip().endswith(tuple(tokens))
        return "" if is_ended else closing_of(text, followed, tokens)
    return ""


def footers(
    template: ChatTemplate, apply: AppliedTemplate, ends: Collection[str], tokens: Collection[str]
) -> dict[bool | None, str]:
    """What the template prints after any last turn, whether it is asked for a generation prompt or not, by whether the
    model is asked to think; nothing where marks say what an answer is.

    Args:
        ends: tokens that are known to end turns.
        tokens: the control tokens.

    Raises:
        ValueError: where a turn ends is unclear.
    """
    found: dict[bool | None, str] = {}
    question, answer = QUESTION.as_dict(), ANSWER.as_dict()
    for thinks in () if template.has_marks else (None, True, False):
        with suppress(BadRow):
            asked, answered = (apply(part, None, thinks=thinks)[0] for part in ([question], [question, answer]))
            if asked == apply([question], None, prompt=True, thinks=thinks)[0]:
                footer = footer_of(asked, answered, ends, tokens)
                if footer is None and thinks is None:
                    raise ValueError(_ENDS_IN_PROMPT.format(template.origin))
                found[thinks] = footer or ""
    return found


def written_reasoning(template: ChatTemplate, apply: AppliedTemplate, place: str | None) -> WrittenReasoning | None:
    """How a model writes reasoning that the template does not print as it stands in an answer; None where it does, or
    where the template knows no `<think>`.

    Args:
        place: see `reasoning_place`.
    """
    if template.has_marks or place or TAG_END not in template.own_text:
        return None
    question, answer = QUESTION.as_dict(), ANSWER.as_dict()
    thinking = {**answer, "content": inline(REASONING, ANSWER.content)}
    with suppress(BadRow):
        texts = [apply([question, turn], None)[0] for turn in (thinking, answer)]
        prompts = [apply([question], None, prompt=True, thinks=thinks)[0] for thinks in (None, True)]
        reasoned, plain, *cues = (after_last(QUESTION.content, text) for text in (*texts, *prompts))
        return None if is_printed(reasoned, REASONING) else written_as(plain.partition(ANSWER.content)[0], cues)
    return None


def end_token_ids(template: ChatTemplate, tokenizer: str, given: Given, render: Render) -> list[int]:
    """The ids that end a turn, of the first of the conversations that can be rendered: an answer, one with reasoning,
    or either after the prompt of a server.

    Args:
        tokenizer: its name, for the message.
        given: what the model is given of its answers.

    Raises:
        ValueError: the conversation cannot be rendered and labelled.
    """
    thinks = (False, True) if given.header is None else (True,)
    by_itself = (False,) if template.has_marks else (False, True)
    tried = [_probe(with_it, is_prompted) for with_it in thinks for is_prompted in by_itself]
    results = render(tried)
    example = next((result for result in results if not isinstance(result, BadRow)), None)
    if example is None:
        bad = _most_telling([result for result in results if isinstance(result, BadRow)])
        raise ValueError(
            f"chat_template {template.origin!r} cannot be trained on with the tokenizer "
            f"{tokenizer!r}: {bad.detail} ({bad.reason})"
        )
    is_trained = example.labels != IGNORE_INDEX
    first, end = int(is_trained.argmax()), int(example.input_ids[is_trained][-1])
    if first and end == example.input_ids[first - 1]:
        raise ValueError(_ENDS_IN_PROMPT.format(template.origin))
    return [end]


def _most_telling(found: Sequence[BadRow]) -> BadRow:
    """The last that is not the general one."""
    return next((bad for bad in reversed(found) if bad.reason != "template_not_prefix"), found[0])


def _probe(with_reasoning: bool, is_prompted: bool) -> Conversation:
    answer = Message("assistant", ANSWER.content, train=True, reasoning=REASONING if with_reasoning else None)
    return Conversation((QUESTION, answer), "probe", 0, is_prompted=is_prompted)
