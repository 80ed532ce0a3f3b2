"""What happens to a conversation of more than seq_len tokens: drop it, truncate it, or split it at its turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.labelling import IGNORE_INDEX, TokenizedExample
from data_prep.rendering import Renderer


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row that fits: one document, or several pieces."""

    examples: list[TokenizedExample]
    lost_tokens: int  # tokens of the whole row that are in none of the documents
    how: str | None  # "truncated", "split", or None if it fitted as it was


def fit(conversation: Conversation, example: TokenizedExample, seq_len: int, policy: str, renderer: Renderer) -> Fitted:
    """Make a row fit.

    Args:
        policy: the recipe's `too_long`: "drop" and "refuse" give up, "truncate" cuts the end off, "split" makes pieces
            of whole exchanges.

    Raises:
        BadRow: "too_long": it does not fit, and the policy does not help.
    """
    length = int(example.input_ids.size)
    if length <= seq_len:
        return Fitted([example], 0, None)
    if policy == "truncate":
        return _truncate(example, seq_len)
    if policy == "split":
        pieces = list(_split(conversation, seq_len, renderer))
        if pieces:
            # Tokens of pieces that are dropped; the repeated system prompts make the pieces longer, never shorter.
            return Fitted(pieces, max(0, length - sum(int(p.input_ids.size) for p in pieces)), "split")
    raise BadRow("too_long", f"{length} tokens; seq_len is {seq_len}")


def _truncate(example: TokenizedExample, seq_len: int) -> Fitted:
    """The first seq_len tokens, if any of them is trained.

    The end of the turn that is cut is cut with it: the model must not learn to stop in the middle of an answer.
    """
    length = int(example.input_ids.size)
    cut = TokenizedExample(example.input_ids[:seq_len], example.labels[:seq_len])
    if not (cut.labels != IGNORE_INDEX).any():
        raise BadRow("too_long", f"{length} tokens; the first {seq_len} (seq_len) hold no answer")
    return Fitted([cut], length - seq_len, "truncated")


def _split(conversation: Conversation, seq_len: int, renderer: Renderer) -> Iterator[TokenizedExample]:
    """As many whole exchanges as fit in each piece, each with the system prompt. What fits nowhere is left out."""
    system, exchanges = _exchanges(conversation)
    piece: list[Message] = []
    best: TokenizedExample | None = None
    for exchange in exchanges:
        longer = _render(conversation, system + piece + exchange, seq_len, renderer)
        if longer is not None:
            piece, best = piece + exchange, longer
            continue
        if best is not None:
            yield best
        best = _render(conversation, system + exchange, seq_len, renderer)
        piece = exchange if best is not None else []
    if best is not None:
        yield best


def _exchanges(conversation: Conversation) -> tuple[list[Message], list[list[Message]]]:
    """The system prompt, and what follows it cut before each question that comes after an answer."""
    messages = list(conversation.messages)
    system = messages[:1] if messages[0].role == "system" else []
    number, numbered = 0, []
    for before, message in zip([None, *messages[len(system) :]], messages[len(system) :], strict=False):
        number += message.role == "user" and before is not None and before.role == "assistant"
        numbered.append((number, message))
    return system, [[m for _, m in group] for _, group in groupby(numbered, key=lambda pair: pair[0])]


def _render(
    conversation: Conversation, messages: list[Message], seq_len: int, renderer: Renderer
) -> TokenizedExample | None:
    result = renderer.render([replace(conversation, messages=tuple(messages))])[0]
    fits = isinstance(result, TokenizedExample) and result.input_ids.size <= seq_len
    return result if fits and isinstance(result, TokenizedExample) else None
