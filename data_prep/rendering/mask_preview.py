"""A document as the model sees it, for a terminal: trained tokens in green, the others dim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.shards import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def coloured(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]) -> str:
    """Decode runs of trained (green) and untrained (dim) tokens; runs are decoded whole so that no character breaks."""
    green, dim, reset = "\033[1;32m", "\033[2m", "\033[0m"
    parts, start = [], 0
    for i in range(1, len(input_ids) + 1):
        if i == len(input_ids) or (labels[i] == IGNORE_INDEX) != (labels[start] == IGNORE_INDEX):
            colour = dim if labels[start] == IGNORE_INDEX else green
            parts.append(colour + str(tokenizer.decode(list(input_ids[start:i]))) + reset)
            start = i
    return "".join(parts)
