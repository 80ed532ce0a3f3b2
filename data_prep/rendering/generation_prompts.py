"""Turns and generation prompts that a template prints otherwise than one after the other.

Some prompts end in what no turn has, such as the empty block of reasoning for a model that shall not think. Some
templates print the token that ends a turn only with the next turn: GLM's `<|user|>` and `<|observation|>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple

STAND_IN = "\ue0f0"  # an answer that no template prints by itself, and that no header begins with


class Closings(NamedTuple):
    """What ends a turn and is printed only with the next one.

    Attributes:
        answer: of an answer.
        call: of a turn that calls tools.
    """

    answer: str = ""
    call: str = ""

    def of(self, message: dict[str, Any]) -> str:
        """That of an assistant's message, in the form that templates take."""
        return self.call if message.get("tool_calls") else self.answer


def closing_of(text: str, followed: str, tokens: Iterable[str]) -> str:
    """The control token that a conversation goes on with, and the white space before it.

    Args:
        text: it ends in an answer.
        followed: the same with one more message.
        tokens: the control tokens.

    Returns:
        Nothing where the answer's turn is not printed as before, or goes on with something else.
    """
    if not followed.startswith(text):
        return ""
    rest = followed[len(text) :]
    token = max((t for t in tokens if t and rest.lstrip().startswith(t)), key=len, default="")
    return rest[: len(rest) - len(rest.lstrip())] + token if token else ""


def footer_of(asked: str, answered: str, ends: Iterable[str], tokens: Iterable[str]) -> str | None:
    """What a template prints after the last turn whoever has said it: the header of an answer (Command R7B, ToolACE).

    Args:
        asked: a question, without the generation prompt.
        answered: the question and an answer.
        ends: tokens that are known to end turns.
        tokens: the control tokens.

    Returns:
        What follows the last of `ends`, if both end in it; nothing where both end in a turn. None where both end in
        another control token, so that it is unclear.
    """
    shared = common_start(asked[::-1], answered[::-1])[::-1]
    after = max((shared.rfind(token) + len(token) for token in ends if token in shared), default=None)
    if after is None:
        return None if shared.rstrip().endswith(tuple(tokens)) else ""
    return shared[after:] if shared[after:].strip() else ""


def after_prompt(prompt: str, text: str, stand_in: str, said: str) -> str | None:
    """What a turn says after a prompt that the template prints otherwise in turns.

    For example `<|assistant|><think></think>` is prompted, and `<|assistant|></think>Hello.` printed: the header is
    `<|assistant|>`, what the turn repeats of the prompt `</think>`, and the turn `Hello.`. What stands before the last
    content may differ: Mistral's templates print the system prompt only where a question is the last message.

    Args:
        prompt: all that the model is given.
        text: with the turn.
        stand_in: with STAND_IN as the turn.
        said: the content before the turn.

    Returns:
        None where they are not so.
    """
    before, is_there, _ = stand_in.partition(STAND_IN)
    if not (is_there and text.startswith(before) and said in prompt and said in before):
        return None
    cue, printed = after_last(said, prompt), after_last(said, before)
    if printed.startswith(cue) and printed[len(cue) :].isspace():
        return printed[len(cue) :] + text[len(before) :]  # the model writes the blanks
    header = common_start(cue, printed)
    repeated = printed[len(header) :]
    if bool(cue) != bool(header) or not cue[len(header) :].endswith(repeated):
        return None
    return text[len(before) :]


def after_same_header(prompt: str, text: str, stand_in: str, said: str, content: str) -> str | None:
    """What a turn says where its header is that of the prompt but for white space (Llama 4 as vLLM prints it), or but
    for what stands before it: see `after_prompt`, also for the arguments.

    Args:
        content: of the turn.
    """
    header = header_of_prompt(prompt, stand_in, said)
    if header is None:
        return None
    cue, at = after_last(said, prompt), _end_of_last(said, common_start(stand_in.partition(STAND_IN)[0], text))
    if at is not None and text.startswith(cue, at):
        return text[at + len(cue) :]  # more white space is the model's: Mistral's answers begin with a space
    end = end_of_header(text, stand_in, said, header)
    if end is None:
        return None
    is_indented = not content[:1].isspace() and not _end_alike(prompt, stand_in.partition(STAND_IN)[0])
    return text[end:].lstrip() if is_indented else text[end:]


def header_of_prompt(prompt: str, stand_in: str, said: str, ignored: str = "") -> str | None:
    """What a prompt ends in after the last content, if a turn has the same before its answer; white space aside.

    Args:
        ignored: a pattern of what may be in one of them alone.
    """
    prompt, before, said = (_bare(text, ignored) for text in (prompt, stand_in.partition(STAND_IN)[0], said))
    if not (said in prompt and said in before):
        return None
    cue, printed = after_last(said, prompt), after_last(said, before)
    return cue if cue == printed else None


def end_of_header(text: str, stand_in: str, said: str, header: str, ignored: str = "") -> int | None:
    """Where the last turn begins in a text. A call may be printed with other white space than the answer that stands
    in for it.

    Args:
        header: see `header_of_prompt`.
    """
    before = stand_in.partition(STAND_IN)[0]
    if text.startswith(before):
        return len(before)
    at = _end_of_last(said, common_start(before, text))
    gap = rf"(?:\s|{ignored})*" if ignored else r"\s*"
    pattern = gap + "".join(f"{re.escape(character)}{gap}" for character in header)
    found = None if at is None else re.compile(pattern).match(text, at)
    return found.end() if found else None


def _end_alike(prompt: str, before: str) -> bool:
    """Whether a prompt ends in the white space that the template prints before an answer."""
    return prompt[len(prompt.rstrip()) :] == before[len(before.rstrip()) :]


def _end_of_last(said: str, text: str) -> int | None:
    """One past the last occurrence of a content; None where there is none."""
    return text.rindex(said) + len(said) if said in text else None


def _bare(text: str, ignored: str) -> str:
    """The text without white space and what is ignored."""
    return "".join((re.sub(ignored, "", text) if ignored else text).split())


def after_last(said: str, text: str) -> str:
    """What follows the last occurrence of a content; the whole text where the content is empty."""
    return text.rpartition(said)[2] if said else text


def common_start(first: str, second: str) -> str:
    """The text that both begin with."""
    pairs = zip(first, second, strict=False)
    return first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]
