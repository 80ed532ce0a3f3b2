"""The pseudo-random order in which documents are chosen, by their content."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Content = TypeVar("Content", int, np.ndarray)
_MASK = 2**64 - 1


def selection_order(content: Content, seed: int) -> Content:
    """Keys of 64 bits from content hashes and seed (splitmix64's finaliser, Steele et al. 2014): the smallest are used
    first.

    Args:
        content: (documents,) uint64, or one hash.
    """
    x = (content + ((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK)) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
