"""A document as the model sees it: on a terminal trained tokens in green and others dim, elsewhere trained in ⟦ ⟧."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from data_prep.shards import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_GREEN, _DIM, _RESET = "\033[1;32m", "\033[2m", "\033[0m"
_COLOURED, _PLAIN = (
    ((_GREEN, _RESET), (_DIM, _RESET)),
    (("⟦", "⟧"), ("", "")),
)  # around what is trained, and what is not


def takes_colours(stream: TextIO) -> bool:
    """Whether it is a terminal; NO_COLOR and FORCE_COLOR, of any value, say otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def marked(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int], *, colours: bool
) -> str:
    """Decode runs of trained and untrained tokens, each marked; runs are decoded whole so that no character breaks."""
    trained, untrained = _COLOURED if colours else _PLAIN
    parts, start = [], 0
    for i in range(1, len(input_ids) + 1):
        if i == len(input_ids) or (labels[i] == IGNORE_INDEX) != (labels[start] == IGNORE_INDEX):
            before, behind = untrained if labels[start] == IGNORE_INDEX else trained
            parts.append(before + str(tokenizer.decode(list(input_ids[start:i]))) + behind)
            start = i
    return "".join(parts)
