"""How much answers to one question vary."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import combinations

MOST_PAIRS = 100


def variation(answers: Sequence[str]) -> str:
    """A line for people: how many answers differ, and how alike two of them are on average (1: equal; the share of
    words in common order, by difflib)."""
    pairs = list(combinations([answer.split() for answer in answers], 2))
    every = max(1, -(-len(pairs) // MOST_PAIRS))
    shares = [SequenceMatcher(None, one, other, autojunk=False).ratio() for one, other in pairs[::every]]
    alike = sum(shares) / len(shares) if shares else 1.0
    return f"{len(set(answers))} of {len(answers)} answers differ; two of them are alike by {alike:.2f}"
