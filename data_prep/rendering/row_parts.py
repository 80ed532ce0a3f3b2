"""A raw row as several conversations, each of which becomes documents of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.labels import TokenizedExample, Turns
from data_prep.rendering.long_rows import Fitted, fit
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.rewrites import Rewrite


class Served(NamedTuple):
    """A row that fits, and what is counted of it."""

    fitted: Fitted
    rewrites: tuple[Rewrite, ...]
    turns: Turns

    @property
    def num_trained(self) -> int:
        """Tokens that count in the loss."""
        return sum(example.num_trained for example in self.fitted.examples)

    @property
    def num_tokens(self) -> int:
        """Of all its documents."""
        return sum(example.num_tokens for example in self.fitted.examples)


def render_one(part: Conversation, renderer: Renderer) -> TokenizedExample:
    """A part of a row; a BadRow is raised."""
    (result,) = renderer.render([part])
    if isinstance(result, BadRow):
        raise result
    return result


def fit_parts(
    parts: Sequence[Conversation],
    examples: Sequence[TokenizedExample],
    rewrites: Sequence[Rewrite],
    seq_len: int,
    policy: str,
    renderer: Renderer,
) -> Served:
    """Make each part fit (see `fit`).

    Args:
        examples: of the parts.
        rewrites: what was changed in the raw row.

    Raises:
        BadRow: one of them does not fit.
    """
    fitted = [fit(part, own, seq_len, policy, renderer) for part, own in zip(parts, examples, strict=True)]
    turns = Turns(*map(sum, zip(*(own.turns for own in examples), strict=True)))
    return Served(_together(fitted), tuple(rewrites), turns)


def _together(fitted: list[Fitted]) -> Fitted:
    examples = [example for one in fitted for example in one.examples]
    how = next((one.how for one in fitted if one.how), None)
    return Fitted(examples, sum(one.lost_tokens for one in fitted), how)


def is_trained(message: Message, train_on: str) -> bool:
    """Whether a turn is trained, with `train_on: last` only after `flagged`."""
    if message.role != "assistant":
        return False
    return message.train is True if train_on == "flags" else message.train is not False
