"""What happens to a conversation of more than seq_len tokens: drop it, truncate it, or split it at its turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

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
            return Fitted([p.example for p in pieces], _lost(conversation, pieces, length, renderer), "split")
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


@dataclass(frozen=True, slots=True)
class _Piece:
    messages: list[Message]  # without the system prompt
    example: TokenizedExample


def _split(conversation: Conversation, seq_len: int, renderer: Renderer) -> Iterator[_Piece]:
    """As many whole exchanges as fit in each piece, each with the system prompt. What fits nowhere is left out, and so
    are pieces of which nothing is trained; in others, what is not trained is context."""
    system, exchanges = _exchanges(_flagged(conversation, renderer.train_on))
    best: _Piece | None = None
    for exchange in exchanges:
        longer = _render(conversation, system, (best.messages if best else []) + exchange, renderer)
        if longer is not None and longer.example.input_ids.size <= seq_len:
            best = longer
            continue
        if best is not None and best.example.num_trained:
            yield best
        alone = _render(conversation, system, exchange, renderer) if best is not None else longer
        best = alone if alone is not None and alone.example.input_ids.size <= seq_len else None
    if best is not None and best.example.num_trained:
        yield best


def _flagged(conversation: Conversation, train_on: str) -> Conversation:
    """What `train_on: last` trains of the whole row is trained of its pieces, and not the last answer of each."""
    if train_on != "last":
        return conversation
    messages = list(conversation.messages)
    last = max(i for i, m in enumerate(messages) if m.role == "assistant")
    return replace(
        conversation,
        messages=tuple(
            replace(m, train=False) if m.role == "assistant" and i < last else m for i, m in enumerate(messages)
        ),
    )


def _lost(conversation: Conversation, pieces: list[_Piece], length: int, renderer: Renderer) -> int:
    """Tokens of what is in no piece: by how many the row is shorter without it."""
    system, exchanges = _exchanges(conversation)
    kept = [message for piece in pieces for message in piece.messages]
    if len(kept) == sum(map(len, exchanges)):
        return 0
    shorter = _render(conversation, system, kept, renderer)
    return length if shorter is None else max(0, length - int(shorter.example.input_ids.size))


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
    conversation: Conversation, system: list[Message], messages: list[Message], renderer: Renderer
) -> _Piece | None:
    """The piece, with no label where none of its answers is trained; None if it cannot be rendered."""
    piece = replace(conversation, messages=tuple(system + messages))
    result = renderer.render([piece])[0]
    if isinstance(result, BadRow) and result.reason == "no_trained_tokens":
        marked = [replace(m, train=True) if m.role == "assistant" else m for m in piece.messages]
        result = renderer.render([replace(piece, messages=tuple(marked))])[0]
        if isinstance(result, TokenizedExample):
            result = TokenizedExample(result.input_ids, np.full_like(result.labels, IGNORE_INDEX))
    return _Piece(messages, result) if isinstance(result, TokenizedExample) else None
