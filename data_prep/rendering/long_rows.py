"""Conversations of more than seq_len tokens: dropped, truncated, or split at their turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Fitted:
    """A row that fits, as one document or as several."""

    examples: list[TokenizedExample]
    lost_tokens: int  # tokens of the whole row that are in none of the documents
    how: str | None  # "truncated", "split", or None if it fitted as it was


def fit(conversation: Conversation, example: TokenizedExample, seq_len: int, policy: str, renderer: Renderer) -> Fitted:
    """Make a row fit.

    Args:
        policy: the recipe's `too_long`: "drop" and "refuse" give up, "truncate" cuts the end off, "split" makes
            documents of whole exchanges.

    Raises:
        BadRow: "too_long": it does not fit, and the policy does not help.
    """
    length = int(example.input_ids.size)
    if length <= seq_len:
        return Fitted([example], 0, None)
    if policy == "truncate":
        return _truncate(example, seq_len)
    if policy == "split":
        documents = list(_split(conversation, seq_len, renderer))
        if documents:
            return Fitted([d.example for d in documents], _lost(conversation, documents, length, renderer), "split")
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
class _Document:
    messages: list[Message]  # without the system prompt
    example: TokenizedExample


def _split(conversation: Conversation, seq_len: int, renderer: Renderer) -> Iterator[_Document]:
    """As many whole exchanges as fit in each document, each with the system prompt. Left out are exchanges that fit
    nowhere and documents without a trained answer; in the others, answers that are not trained are context."""
    system, exchanges = exchanges_of(flagged(conversation, renderer.train_on))
    best: _Document | None = None
    for exchange in exchanges:
        before = best.messages if best else []
        longer = _render(conversation, system, before + exchange, renderer)
        if longer is not None and longer.example.input_ids.size <= seq_len:
            best = longer
            continue
        if best is not None and best.example.num_trained:
            yield best
        alone = longer if best is None else _render(conversation, system, exchange, renderer)
        best = alone if alone is not None and alone.example.input_ids.size <= seq_len else None
    if best is not None and best.example.num_trained:
        yield best


def flagged(conversation: Conversation, train_on: str) -> Conversation:
    """With `train_on: last`, the last answer of the whole row is trained, and not the last one of each document."""
    if train_on != "last":
        return conversation
    messages = list(conversation.messages)
    *earlier, _ = (i for i, m in enumerate(messages) if m.role == "assistant")
    for i in earlier:
        messages[i] = replace(messages[i], train=False)
    return replace(conversation, messages=tuple(messages))


def _lost(conversation: Conversation, documents: list[_Document], length: int, renderer: Renderer) -> int:
    """Tokens of what is in no document: by how many the row is shorter without it."""
    system, exchanges = exchanges_of(conversation)
    kept = [message for document in documents for message in document.messages]
    if len(kept) == sum(map(len, exchanges)):
        return 0
    shorter = _render(conversation, system, kept, renderer)
    return length if shorter is None else max(0, length - int(shorter.example.input_ids.size))


def exchanges_of(conversation: Conversation) -> tuple[list[Message], list[list[Message]]]:
    """The system prompt, and what follows it cut before each question that comes after an answer."""
    messages = list(conversation.messages)
    system = messages[:1] if messages[0].role == "system" else []
    exchanges: list[list[Message]] = []
    for message in messages[len(system) :]:
        is_new = not exchanges or (message.role == "user" and exchanges[-1][-1].role == "assistant")
        if is_new:
            exchanges.append([])
        exchanges[-1].append(message)
    return system, exchanges


def _render(
    conversation: Conversation, system: list[Message], messages: list[Message], renderer: Renderer
) -> _Document | None:
    """The document, with no label where none of its answers is trained; None if it cannot be rendered."""
    part = replace(conversation, messages=tuple(system + messages))
    result = renderer.render([part])[0]
    if isinstance(result, BadRow) and result.reason == "no_trained_tokens":
        flagged = [replace(m, train=True) if m.role == "assistant" else m for m in part.messages]
        result = renderer.render([replace(part, messages=tuple(flagged))])[0]
        if isinstance(result, TokenizedExample):
            result = TokenizedExample(result.input_ids, np.full_like(result.labels, IGNORE_INDEX))
    return _Document(messages, result) if isinstance(result, TokenizedExample) else None
