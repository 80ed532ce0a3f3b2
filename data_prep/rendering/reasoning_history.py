"""Rows with reasoning in earlier turns, as documents in which each turn is trained as it will be prompted.

Whoever talks with a model sends its answers back, not its reasoning, and templates leave out what is sent of it before
the last question. So a turn is never prompted with the reasoning of turns before that question.
"""

from __future__ import annotations

from dataclasses import replace

from data_prep.conversation import Conversation, Message
from data_prep.rendering import reasoning
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.long_rows import exchanges_of, fit, flagged
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.rewrites import HISTORY, LEFT_OUT, Rewrite
from data_prep.rendering.row_parts import Served, fit_parts, is_trained, render_one


def fit_as_served(
    conversation: Conversation, example: TokenizedExample, seq_len: int, policy: str, renderer: Renderer
) -> Served:
    """Make a row fit (see `fit`), each of its turns as it will be prompted.

    Args:
        example: the whole row.

    Raises:
        BadRow: one of its documents cannot be rendered, or does not fit.
    """
    parts = as_served(conversation, renderer.train_on)
    if len(parts) == 1 and parts[0] is conversation:
        return Served(fit(conversation, example, seq_len, policy, renderer), example.rewrites, example.turns)
    examples = [render_one(part, renderer) for part in parts]
    # What the template left out of the whole row is trained in a document of its own.
    rewrites = [rewrite for rewrite in example.rewrites if rewrite.name != LEFT_OUT]
    return fit_parts(parts, examples, [*rewrites, Rewrite(HISTORY, len(parts))], seq_len, policy, renderer)


def as_served(conversation: Conversation, train_on: str) -> list[Conversation]:
    """The row as it is, if no reasoning stands before its last question. Otherwise one conversation for each exchange
    with reasoning, and for the exchanges after the last of them. In each, the exchanges of the ones before are without
    reasoning, and not trained. Those that train nothing are left out.

    Args:
        train_on: see Renderer.
    """
    system, exchanges = exchanges_of(flagged(conversation, train_on))
    ends = [i + 1 for i, exchange in enumerate(exchanges[:-1]) if any(map(reasoning.is_in, exchange))]
    if not ends:
        return [conversation]
    found = []
    for start, end in zip([0, *ends], [*ends, len(exchanges)], strict=True):
        context = [_as_context(m) for exchange in exchanges[:start] for m in exchange]
        own = [m for exchange in exchanges[start:end] for m in exchange]
        if any(is_trained(m, train_on) for m in own):
            found.append(replace(conversation, messages=(*system, *context, *own)))
    return found


def _as_context(message: Message) -> Message:
    if message.role != "assistant":
        return message
    return replace(reasoning.without(message), train=False)
