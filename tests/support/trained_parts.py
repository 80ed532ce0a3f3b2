"""What is trained of tokenized examples, as text."""

from __future__ import annotations

from typing import Any

from data_prep.rendering.labels import TokenizedExample
from data_prep.shards import IGNORE_INDEX


def trained_parts(tokenizer: Any, *examples: TokenizedExample) -> list[tuple[str, str]]:
    """Each run of trained tokens: the text of its example before it, and its own."""
    found = []
    for example in examples:
        ids, is_trained = example.input_ids, [*(example.labels != IGNORE_INDEX), False]
        starts = [i for i, now in enumerate(is_trained) if now and not (i and is_trained[i - 1])]
        ends = [is_trained.index(False, i) for i in starts]
        found += [(tokenizer.decode(ids[:i]), tokenizer.decode(ids[i:j])) for i, j in zip(starts, ends, strict=True)]
    return found
