"""Reasoning that a model writes and its template never prints: DeepSeek's templates drop all before `</think>`.

The generation prompt may begin it with `<think>`. What the model says after it is what the template prints of the
answer alone, so that a turn is: the prompt, the reasoning, `</think>`, the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_prep.rendering.generation_prompts import end_of_header, header_of_prompt
from data_prep.rendering.reasoning import CLOSE, OPEN, split_inline, without_separator

_TAGS = f"{OPEN}|{CLOSE}"
_BLOCK = re.compile(rf"{OPEN}(\s*){CLOSE}(\s*)")
_OPENED = re.compile(rf"{OPEN}(\s*)$")
_LAST_TAGS = re.compile(rf"(?:\s|{_TAGS})*$")


class WrittenReasoning(NamedTuple):
    """What stands around it.

    Attributes:
        opening: before it, unless the prompt holds it.
        closing: after it, up to the answer.
    """

    opening: str = f"{OPEN}\n"
    closing: str = f"\n{CLOSE}\n\n"

    def without(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message in the form that templates take, without the reasoning that its content begins with."""
        reasoning, answer = split_inline(str(message["content"]))
        return message if reasoning is None else {**message, "content": without_separator(answer)}

    def of(self, message: dict[str, Any]) -> str:
        """The reasoning that its content begins with."""
        reasoning, _ = split_inline(str(message["content"]))
        return (reasoning or "").strip()

    def after(self, prompt: str, text: str, stand_in: str, said: str, reasoning: str) -> str | None:
        """What the model says after a prompt.

        Args:
            text: with the turn, without its reasoning.
            stand_in: with STAND_IN as the turn.
            said: the content before the turn.
            reasoning: the turn's.

        Returns:
            None where the prompt is that of a model that shall not think, or the turn has another header.
        """
        header = header_of_prompt(prompt, stand_in, said, _TAGS)
        end = None if header is None else end_of_header(text, stand_in, said, header, _TAGS)
        if end is None or CLOSE in _LAST_TAGS.findall(prompt)[0]:
            return None
        opening = "" if begins_reasoning(prompt) else self.opening
        return f"{opening}{reasoning}{self.closing}{text[end:]}"


def after_closed(prompt: str, text: str, stand_in: str, said: str) -> str | None:
    """What a turn without reasoning says after a prompt that ends in an empty block, which an answer repeats and a call
    does not (Nemotron Nano 2, where a system prompt asks not to think). For the arguments see WrittenReasoning.after.

    Returns:
        None where the prompt ends in something else, or the turn has another header.
    """
    if not prompt.rstrip().endswith(CLOSE):
        return None
    header = header_of_prompt(prompt, stand_in, said, _TAGS)
    end = None if header is None else end_of_header(text, stand_in, said, header, _TAGS)
    return None if end is None else text[end:]


def begins_reasoning(prompt: str) -> bool:
    """Whether a generation prompt ends in the tag that begins reasoning."""
    return prompt.rstrip().endswith(OPEN)


def written_as(printed: str, prompts: Sequence[str]) -> WrittenReasoning:
    """How a model writes its reasoning: as an empty block that the template prints, or as a prompt begins it.

    Args:
        printed: what the template prints between a question and an answer without reasoning.
        prompts: the ends of its generation prompts.
    """
    if block := _BLOCK.search(printed):
        blanks, after = block[1][: len(block[1]) // 2 or None], block[2]
        return WrittenReasoning(f"{OPEN}{blanks}", f"{blanks}{CLOSE}{after}")
    opened = next((found for prompt in prompts if (found := _OPENED.search(prompt))), None)
    if opened is None:
        return WrittenReasoning()
    return WrittenReasoning(f"{OPEN}{opened[1]}", f"{opened[1]}{CLOSE}{opened[1] * 2}")


def is_printed(text: str, reasoning: str) -> bool:
    """Whether reasoning that stood in the content is printed in one block, and not after another."""
    before, is_there, after = text.partition(reasoning)
    return bool(is_there) and before.count(OPEN) == after.count(CLOSE) == 1 and CLOSE not in before
