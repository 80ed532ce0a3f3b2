"""Reasoning that a template prints next to a call, and not in an answer, though the model writes it there (Gemma 4).

What the model says is then: what stands before reasoning next to a call, the reasoning, what stands after it, and what
the template prints of the answer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from data_prep.conversation import BadRow
from data_prep.rendering.reasoning import PARTS, with_reasoning
from data_prep.tokenization.encoded_text import Span

Apply = Callable[..., tuple[str, list[Span]]]  # an AppliedTemplate

_QUESTION = {"role": "user", "content": "Say hello."}
_ANSWER = {"role": "assistant", "content": "Hello."}
_CALL = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
_CALLING = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_REASONING = "They greet me."


class CallReasoning(NamedTuple):
    """What stands around reasoning next to a call.

    Attributes:
        place: the field of a message that holds it.
    """

    place: str
    opening: str
    closing: str

    def is_in(self, message: dict[str, Any]) -> bool:
        """Whether a message is an answer with reasoning, without calls."""
        return bool(message.get(self.place)) and not message.get("tool_calls")

    def without(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer alone."""
        return {key: value for key, value in message.items() if key != self.place}

    def of(self, message: dict[str, Any]) -> str:
        """The reasoning as the model writes it."""
        return f"{self.opening}{message[self.place].strip()}{self.closing}"


def find_call_reasoning(apply: Apply, place: str | None) -> CallReasoning | None:
    """How reasoning is printed, where a call has it and an answer has none; else None.

    Args:
        place: see `reasoning_place`.
    """
    if place is None or place == PARTS:
        return None
    turns = (_CALLING, with_reasoning(_CALLING, _REASONING, place), with_reasoning(_ANSWER, _REASONING, place))
    with suppress(BadRow):
        plain, calling, answer = (apply([_QUESTION, turn], None, thinks=True)[0] for turn in turns)
        prompt, _ = apply([_QUESTION], None, prompt=True, thinks=True)
        said = plain[len(prompt) :]
        fits = all(text.startswith(prompt) for text in (plain, calling)) and said and calling.endswith(said)
        opening, is_there, closing = calling[len(prompt) : -len(said)].partition(_REASONING) if fits else ("", "", "")
        return CallReasoning(place, opening, closing) if is_there and closing and _REASONING not in answer else None
    return None
