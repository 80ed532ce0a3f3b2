"""Turns and generation prompts that a template prints otherwise than one after the other.

Some prompts end in what no turn has, such as the empty block of reasoning for a model that shall not think. Some
templates print the token that ends a turn only with the next turn: GLM's `<|user|>` and `<|observation|>`.
"""

from __future__ import annotations

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
    cue, printed = (whole.rpartition(said)[2] if said else whole for whole in (prompt, before))
    if printed.startswith(cue) and printed[len(cue) :].isspace():
        return printed[len(cue) :] + text[len(before) :]  # the model writes the blanks
    header = common_start(cue, printed)
    repeated = printed[len(header) :]
    if bool(cue) != bool(header) or not cue[len(header) :].endswith(repeated):
        return None
    return text[len(before) :]


def common_start(first: str, second: str) -> str:
    """The text that both begin with."""
    pairs = zip(first, second, strict=False)
    return first[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]
