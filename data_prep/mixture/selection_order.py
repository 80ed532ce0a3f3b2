"""The pseudo-random order in which documents are chosen: keys made of their content."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

Content = TypeVar("Content", int, np.ndarray)
_MASK = 2**64 - 1
_CHUNK = 1 << 20  # hashes mixed at once


def selection_order(content: Content, seed: int) -> Content:
    """Keys of 64 bits from content hashes and seed (splitmix64's finaliser, Steele et al. 2014): the smallest are used
    first.

    Args:
        content: (documents,) uint64, or one hash.
    """
    if not isinstance(content, np.ndarray):
        return _mixed(content, seed)
    keys = np.empty_like(content)
    for start in range(0, content.size, _CHUNK):
        keys[start : start + _CHUNK] = _mixed(content[start : start + _CHUNK], seed)
    return keys


def _mixed(content: Content, seed: int) -> Content:
    x = (content + ((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK)) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
