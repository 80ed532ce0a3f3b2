"""The empty block of reasoning, such as `<think></think>`, that some templates print in a turn without reasoning.

A model that is trained on it learns not to think. It is no answer of the model's either: where a model is asked not to
think, the generation prompt holds the block.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import NamedTuple

from data_prep.conversation import BadRow
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.reasoning import CLOSE, OPEN, with_reasoning
from data_prep.rendering.template_probe import ANSWER, QUESTION, REASONING
from data_prep.tokenization.encoded_text import Span


class EmptyBlock:
    """Finds the empty block that a trained turn begins with.

    Args:
        opening, closing: what stands before and after reasoning, without white space around it. Opening may be empty,
            where the marks begin after it.
        blanks: what separates the block from the answer; None if that is not known.
        trained: the end of `blanks` that no generation prompt holds, so that the model has to write it.
    """

    def __init__(self, opening: str, closing: str, blanks: str | None = None, trained: str = ""):
        self.text = f"{opening}{closing}{blanks or ''}"
        self._trained = trained
        # The line breaks that an answer begins with go with the template's: many tokenizers make them one token.
        after = "()" if blanks == "" else rf"((?:{re.escape(blanks or '')})?[\r\n]*)"
        self._pattern = re.compile(rf"\s*{re.escape(opening)}\s*{re.escape(closing)}{after}")

    def end(self, text: str, start: int) -> int | None:
        """One past the last character of the block at `start`, with the line breaks after it; None if there is none."""
        found = self._pattern.match(text, start)
        if found is None:
            return None
        return found.end() - (len(self._trained) if found[1].endswith(self._trained) else 0)


class _Turn(NamedTuple):
    """What a template prints of a turn: what stands around its reasoning, or only before its answer."""

    before: str
    after: str


def find_empty_block(apply: AppliedTemplate, place: str | None) -> EmptyBlock | None:
    """The empty block of a template, or None.

    Args:
        place: see `reasoning_place`. Without one, it is a `<think>` block that the data itself holds, as reasoning
            then stands in one.
    """
    if place is None:
        return EmptyBlock(OPEN, CLOSE)
    with suppress(BadRow):
        with_it, without = _turn(apply, place), _turn(apply, None)
        if with_it and without:
            return _block(apply, with_it, without.before)
    return None


def prints_block(template: ChatTemplate, block: EmptyBlock) -> str:
    """Why a block cannot be left out."""
    return (
        f"empty_reasoning: leave_out: the chat template {template.origin!r} prints {block.text!r} in turns without "
        "reasoning by itself. Expected a template that prints none: use a built-in one such as qwen3, or a .jinja file "
        "without it; or `empty_reasoning: mask`, which keeps it in the text and does not train it"
    )


def _turn(apply: AppliedTemplate, place: str | None) -> _Turn | None:
    """The probe's turn with reasoning at a place, or without; None where it is not in the marked text."""
    turn = ANSWER.as_dict() if place is None else with_reasoning(ANSWER.as_dict(), REASONING, place)
    text, spans = apply.answers([QUESTION.as_dict(), turn])
    if len(spans) != 1:
        return None
    return _cut(text, spans[0], "" if place is None else REASONING)


def _cut(text: str, span: Span, reasoning: str) -> _Turn | None:
    marked = text[span[0] : span[1]]
    before, found, rest = marked.partition(reasoning) if reasoning else ("", "", marked)
    between, is_there, _ = rest.partition(ANSWER.content)
    if not is_there or found != reasoning:
        return None
    return _Turn(before, between) if reasoning else _Turn(between, "")


def _block(apply: AppliedTemplate, turn: _Turn, printed: str) -> EmptyBlock | None:
    """The block, if what is printed before an answer is what stands around reasoning."""
    opening, closing = turn.before.strip(), turn.after.strip()
    if not closing or "".join(printed.split()) != "".join(f"{opening}{closing}".split()):
        return None
    blanks = printed[len(printed.rstrip()) :]
    return EmptyBlock(opening, closing, blanks, _left_to_the_model(apply, closing, blanks))


def _left_to_the_model(apply: AppliedTemplate, closing: str, blanks: str) -> str:
    """What follows a block that ends in `closing`, where the prompt of a model that shall not think ends before it."""
    prompt, _ = apply([QUESTION.as_dict()], None, prompt=True, thinks=False)
    given = prompt[len(prompt.rstrip()) :]
    is_given = prompt.rstrip().endswith(closing) and blanks.startswith(given)
    return blanks.removeprefix(given) if is_given else ""
