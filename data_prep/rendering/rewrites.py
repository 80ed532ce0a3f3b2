"""Rewrites: what preparation changes in the texts of a raw row that it keeps. Each is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from data_prep.conversation import Message

ESCAPED = "escaped"  # control tokens spelled in text, encoded as plain text
END_TOKENS = "end_tokens_stripped"  # literal end tokens that an answer ended in
REASONING = "reasoning_stripped"  # by `reasoning: strip`
LEFT_OUT = "reasoning_left_out"  # by the template, before the last question
HISTORY = "reasoning_history_split"  # by `reasoning_history: as_served`; its places are the documents of the row
PROMPTED = "split_as_prompted"  # a template prints earlier turns otherwise later; its places are the row's documents
DETAILS = "tool_details_left_out"  # by the template: values and what is nested in tools' parameters
SYSTEM = "system_prompt_left_out"  # by the template, after the result of a call
ANSWER_START = "answer_start_trimmed"  # indentation or leading blanks of an answer
ANSWER_END = "answer_end_trimmed"
PROMPT = "prompt_trimmed"  # blanks around any other content
MASKED = "masked"  # addresses and numbers, by `pii`


class Rewrite(NamedTuple):
    """One kind of rewrite in one raw row."""

    name: str
    places: int  # how often
    lost_tokens: int = 0  # of the text that is gone, encoded by itself


class Removal(NamedTuple):
    """A text that is gone from a raw row, and by which kind of rewrite."""

    name: str
    text: str


class Trim(NamedTuple):
    """What a template strips from both ends of a content: nothing, line breaks, or all white space."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """The text as it is printed."""
        return text.lstrip(_STRIPPED[self.start]).rstrip(_STRIPPED[self.end])

    def removals(self, message: Message) -> list[Removal]:
        """The blanks of a message that are gone."""
        start_name, end_name = (ANSWER_START, ANSWER_END) if message.role == "assistant" else (PROMPT, PROMPT)
        left = message.content.lstrip(_STRIPPED[self.start])
        kept = left.rstrip(_STRIPPED[self.end])
        start, end = message.content[: len(message.content) - len(left)], left[len(kept) :]
        return [Removal(name, text) for name, text in ((start_name, start), (end_name, end)) if text]


NOTHING, LINE_BREAKS, BLANKS = range(3)
_STRIPPED = ("", "\n", None)  # what str.strip takes
KEPT = Trim(NOTHING, NOTHING)
_PRIVATE = 0xF0000  # characters assigned to nobody
_BEFORE, _AFTER = "\u2005", "\u2006"  # kinds of space that no template prints itself


def signs(number: int, first: int = 0) -> list[str]:
    """Characters that stand for contents."""
    return [chr(_PRIVATE + first + i) for i in range(number)]


def between_blanks(sign: str) -> str:
    """A content that shows whether a template trims it."""
    return f"{_BEFORE}{sign}{_AFTER}"


class Place(NamedTuple):
    """Where a sign is in a rendering, with the blanks around it that are left."""

    start: int
    end: int


def find_places(text: str, signs: Sequence[str]) -> list[Place] | None:
    """The places of the signs, each `between_blanks`; None unless each is there once, in their order."""
    places: list[Place] = []
    for sign in signs:
        at = text.find(sign)
        start = at - (text[at - 1 : at] == _BEFORE)
        if at < 0 or text.count(sign) > 1 or (places and start < places[-1].end):
            return None
        places.append(Place(start, at + 1 + (text[at + 1 : at + 2] == _AFTER)))
    return places


def find_trims(render: Callable[[list[str]], str], signs: Sequence[str]) -> list[Trim] | None:
    """What a template strips from each content; None where that cannot be found.

    Args:
        render: contents -> the text.
        signs: one per content.
    """
    contents = [between_blanks(sign) for sign in signs]
    texts = [render([before + c + after for c in contents]) for before, after in (("", ""), ("\n", ""), ("", "\n"))]
    found = [find_places(text, signs) for text in texts]
    plain, led, followed = found
    if plain is None or led is None or followed is None:
        return None
    gaps, led_gaps, followed_gaps = map(_gaps, texts, (plain, led, followed))
    trims = []
    for i, place in enumerate(plain):
        shown = texts[0][place.start : place.end]
        start = _stripped(shown.startswith(_BEFORE), led_gaps[i] - gaps[i])
        end = _stripped(shown.endswith(_AFTER), followed_gaps[i + 1] - gaps[i + 1])
        trims.append(Trim(start, end))
    return trims


def _gaps(text: str, places: Sequence[Place]) -> list[int]:
    """Characters before, between and after the places."""
    starts, ends = [*(p.start for p in places), len(text)], [0, *(p.end for p in places)]
    return [start - end for start, end in zip(starts, ends, strict=True)]


def _stripped(is_blank_left: bool, more: int) -> int:
    """What is stripped on one side, from whether a space is left there, and how many line breaks more there are."""
    if not is_blank_left:
        return BLANKS
    return LINE_BREAKS if more == 0 else NOTHING
