"""Rows whose earlier turns a template prints otherwise once later ones follow, as one document for each trained turn.

Such templates leave out the reasoning of earlier turns, or of calls once the answer is there. No single text then holds
each turn as the model wrote it. A document of its own does: what a server would prompt the turn with, and the turn.
"""

from __future__ import annotations

from dataclasses import replace

from data_prep.conversation import BadRow, Conversation
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.long_rows import flagged
from data_prep.rendering.renderer import Renderer
from data_prep.rendering.rewrites import LEFT_OUT, PROMPTED, Rewrite
from data_prep.rendering.row_parts import Served, fit_parts, is_trained, render_one

_REASONS = ("template_not_prefix", "left_out_by_template")  # what a document for each turn may mend


def can_be_split(conversation: Conversation, bad: BadRow) -> bool:
    """Whether a row that cannot be rendered as a whole may be one that can in parts."""
    return bad.reason in _REASONS and not conversation.is_prompted


def fit_as_prompted(
    conversation: Conversation, bad: BadRow, seq_len: int, policy: str, renderer: Renderer
) -> Served | BadRow:
    """A document for each trained turn, made to fit (see `fit`).

    Args:
        bad: why the row cannot be rendered as a whole.

    Returns:
        The documents; `bad`, if where a turn of them begins cannot be told either; or why another cannot be used.
    """
    parts = as_prompted(conversation, renderer.train_on)
    if not parts:
        return bad
    try:
        examples = [render_one(part, renderer) for part in parts]
    except BadRow as worse:
        return bad if worse.reason == bad.reason or worse.reason == "template_not_prefix" else worse
    rewrites = _most(examples)
    if len(parts) > 1:
        rewrites.append(Rewrite(PROMPTED, len(parts)))
    try:
        return fit_parts(parts, examples, rewrites, seq_len, policy, renderer)
    except BadRow as too_long:
        return too_long


def _most(examples: list[TokenizedExample]) -> list[Rewrite]:
    """Of each kind of rewrite those of the document with most: the documents have most of their text in common. What
    the template leaves out of one is trained in another, if there is one."""
    found: dict[str, Rewrite] = {}
    for rewrite in (rewrite for example in examples for rewrite in example.rewrites):
        if rewrite.name == LEFT_OUT and len(examples) > 1:
            continue
        found[rewrite.name] = max(rewrite, found.get(rewrite.name, rewrite))
    return list(found.values())


def as_prompted(conversation: Conversation, train_on: str) -> list[Conversation]:
    """The row up to each of its trained turns, in which only that one is trained.

    Args:
        train_on: see Renderer.
    """
    messages = flagged(conversation, train_on).messages
    found = []
    for i, message in enumerate(messages):
        if is_trained(message, train_on):
            context = (replace(m, train=False) if m.role == "assistant" else m for m in messages[:i])
            found.append(replace(conversation, messages=(*context, message), is_prompted=True))
    return found
