"""Global best-fit-decreasing bin packing: documents into rows of at most seq_len tokens.

Best-fit-decreasing puts the longest remaining document into the fullest row that still takes it. Over all documents at
once, not in windows, it leaves almost no gap: short documents fill what long ones leave. (Method: Johnson 1974; for
packing documents: "Fewer Truncations Improve Language Modeling", Ding et al. 2024, and TRL's `bfd` strategy.)

Only lengths matter, so documents of one length and rows with one free space are handled together: after a document of
length L went into a row with the least sufficient space s, that row has the least sufficient space again as long as
s - L >= L. So each row takes s // L documents of that length at once. The result is the one-by-one algorithm's.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

import numpy as np


def pack(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, int]:
    """Assign each document to a row.

    Args:
        lengths: (documents,) integers, each from 1 to seq_len.
        seq_len: tokens a row holds at most.

    Returns:
        (documents,) int64 row numbers, and how many rows there are. The same for the same lengths, always.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    lengths = np.asarray(lengths)
    if lengths.size == 0:
        return np.empty(0, dtype=np.int64), 0
    if lengths.min() < 1 or lengths.max() > seq_len:
        raise ValueError(f"lengths must be from 1 to seq_len={seq_len}, found {lengths.min()} to {lengths.max()}")
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(lengths.size, dtype=np.int64)
    rows = _OpenRows(seq_len)
    boundaries = np.flatnonzero(np.diff(lengths[order])) + 1
    for documents in np.split(order, boundaries):
        rows.place(documents, int(lengths[documents[0]]), row_of)
    return row_of, rows.count


class _OpenRows:
    """Rows that still have space, as runs of consecutive row numbers by space."""

    def __init__(self, seq_len: int):
        self.seq_len = seq_len
        self.count = 0  # rows opened so far
        self._spaces: list[int] = []  # sorted, without repeats
        self._runs: dict[int, deque[np.ndarray]] = {}

    def place(self, documents: np.ndarray, length: int, row_of: np.ndarray) -> None:
        """Put documents of one length into the fullest rows that take them, opening rows when none does."""
        while documents.size:
            at = bisect_left(self._spaces, length)
            if at < len(self._spaces):
                space = self._spaces[at]
                rows = self._take(space, -(-documents.size // (space // length)))
            else:
                space = self.seq_len
                needed = -(-documents.size // (space // length))
                rows = np.arange(self.count, self.count + needed)
                self.count += needed
            documents = self._fill(rows, space, documents, length, row_of)

    def _fill(self, rows: np.ndarray, space: int, documents: np.ndarray, length: int, row_of: np.ndarray) -> np.ndarray:
        """Fill each row with as many documents as it takes; the documents that are left."""
        per_row = space // length
        placed = min(documents.size, rows.size * per_row)
        row_of[documents[:placed]] = np.repeat(rows, per_row)[:placed]
        full, rest = divmod(placed, per_row)
        self._add(space - per_row * length, rows[:full])
        if rest:  # the last row took fewer
            self._add(space - rest * length, rows[full : full + 1])
        return documents[placed:]

    def _take(self, space: int, wanted: int) -> np.ndarray:
        """Up to `wanted` rows with exactly this space, no longer open."""
        runs = self._runs[space]
        rows = runs.popleft()
        if rows.size > wanted:
            runs.appendleft(rows[wanted:])
            rows = rows[:wanted]
        if not runs:
            del self._runs[space]
            self._spaces.remove(space)
        return rows

    def _add(self, space: int, rows: np.ndarray) -> None:
        if space == 0 or rows.size == 0:
            return
        if space not in self._runs:
            self._runs[space] = deque()
            insort(self._spaces, space)
        self._runs[space].append(rows)
