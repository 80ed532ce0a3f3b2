"""The pseudo-random order in which documents are chosen, by their content (splitmix64, Steele et al. 2014)."""

from __future__ import annotations

import numpy as np

_MASK = 2**64 - 1


def selection_order(content: np.ndarray, seed: int) -> np.ndarray:
    """(documents,) uint64 keys from content hashes and seed: the smallest are used first."""
    x = content.astype(np.uint64) + np.uint64(_increment(seed))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def selection_key(content: int, seed: int) -> int:
    """The key of one content hash."""
    x = (content + _increment(seed)) & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def _increment(seed: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
