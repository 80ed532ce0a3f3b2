"""Packing: documents into packed rows of at most seq_len tokens, which are full and alike.

Best-fit-decreasing over all documents at once puts the longest remaining document into the fullest row that still takes
it, and leaves almost no gap: short documents fill what long ones leave. (Method: Johnson 1974; for packing documents:
"Fewer Truncations Improve Language Modeling", Ding et al. 2024, and TRL's `bfd` strategy.) But documents much shorter
than a row then lie next to others of their own length: a step of a few rows sees few lengths and few kinds of tasks,
and the processes of a step compute attention for very different times.

So most documents are dealt instead: longest first, round by round, the longest of a round to the emptiest row (the LPT
rule, Graham 1969). Each row gets its part of every length. A reserve of short documents of all lengths then fills the
gaps by best-fit-decreasing. Where that would cost more than one row in a thousand, a larger reserve is tried, and last
plain best-fit-decreasing, as for documents about as long as a row.

Only lengths matter to best-fit-decreasing, so documents of one length and rows with one free space are handled
together: after a document of length L went into a row with the least sufficient space s, that row has the least
sufficient space again as long as s - L >= L. So each row takes s // L documents of that length at once. The result is
the one-by-one algorithm's.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

import numpy as np

from data_prep.mixture.equal_keys import argsort_numbers

_RESERVES = (0.1, 0.2, 0.4)  # of all tokens, left to fill the gaps
_SHORT = 8  # the reserve's documents are at most this part of a row
_COST = 1000  # rows; one row more for each 1,000 is a fair price
_CHUNK = 1 << 20  # documents looked at at once


def pack(lengths: np.ndarray, seq_len: int) -> tuple[np.ndarray, int]:
    """Assign each document to a row.

    Args:
        lengths: (documents,) integers, each from 1 to seq_len.
        seq_len: tokens a row holds at most.

    Returns:
        (documents,) int32 or int64 row numbers, and how many rows there are. The same for the same lengths, always.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    lengths = np.asarray(lengths)
    if lengths.size == 0:
        return np.empty(0, dtype=np.int32), 0
    if lengths.min() < 1 or lengths.max() > seq_len:
        raise ValueError(f"lengths must be from 1 to seq_len={seq_len}, found {lengths.min()} to {lengths.max()}")
    order = longest_first(lengths, seq_len)
    count = _count_best_fit_decreasing(lengths, seq_len, order)
    for reserve in _RESERVES:
        dealt, dealt_count = _deal(lengths, seq_len, order, reserve)
        if dealt_count <= count + count // _COST:
            return dealt, dealt_count
        del dealt
    return best_fit_decreasing(lengths, seq_len, order)


def longest_first(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """(documents,) their numbers, by length; equally long ones as they come."""
    return argsort_numbers(seq_len - lengths, seq_len)


def best_fit_decreasing(
    lengths: np.ndarray,
    seq_len: int,
    order: np.ndarray,
    begun: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, int]:
    """Best-fit-decreasing, over rows that are empty or begun.

    Args:
        lengths: (documents,) integers.
        seq_len: tokens a row holds at most.
        order: documents to place, the longest first.
        begun: (documents,) row numbers so far, written to; and (rows,) tokens of each row.

    Returns:
        (documents,) row numbers, and how many rows there are.
    """
    row_of, loads = begun or (np.empty(lengths.size, dtype=order.dtype), np.empty(0, dtype=np.int32))
    rows = _OpenRows(seq_len, loads)
    for documents in _runs(order, lengths[order]):
        rows.place(documents, int(lengths[documents[0]]), row_of)
    return row_of, rows.count


def _count_best_fit_decreasing(lengths: np.ndarray, seq_len: int, order: np.ndarray) -> int:
    """The number of rows alone."""
    rows = _OpenRows(seq_len, np.empty(0, dtype=np.int32))
    for documents in _runs(order, lengths[order]):
        rows.place(documents, int(lengths[documents[0]]), None)
    return rows.count


def _deal(lengths: np.ndarray, seq_len: int, order: np.ndarray, reserve: float) -> tuple[np.ndarray, int]:
    """Deal all but a reserve to as many rows as the tokens need at least, then fill these up."""
    total = int(lengths.sum(dtype=np.int64))
    loads = np.zeros(-(-total // seq_len), dtype=np.int32)
    row_of = np.empty(lengths.size, dtype=order.dtype)
    kept = _choose_reserve(lengths[order], seq_len, reserve * total)
    dealt, rest = order[~kept], [order[kept]]
    for first in range(0, dealt.size, loads.size):
        documents = dealt[first : first + loads.size]
        emptiest_first = argsort_numbers(loads, seq_len)
        rows = emptiest_first[: documents.size]
        fits = loads[rows] + lengths[documents] <= seq_len
        rest.append(documents[~fits])
        documents, rows = documents[fits], rows[fits]
        row_of[documents] = rows
        loads[rows] += lengths[documents].astype(loads.dtype, copy=False)
    del dealt, kept
    left = np.concatenate(rest)
    return best_fit_decreasing(lengths, seq_len, left[longest_first(lengths[left], seq_len)], (row_of, loads))


def _choose_reserve(decreasing: np.ndarray, seq_len: int, tokens: float) -> np.ndarray:
    """(documents,) bool: short documents of about `tokens` tokens together, of all lengths alike."""
    is_chosen = np.zeros(decreasing.size, dtype=bool)
    first_short = int(np.count_nonzero(decreasing * _SHORT > seq_len))
    share = min(1.0, tokens / max(1, int(decreasing[first_short:].sum(dtype=np.int64))))
    for start in range(first_short, decreasing.size, _CHUNK):
        end = min(start + _CHUNK, decreasing.size)
        steps = np.floor(np.arange(start - first_short, end - first_short + 1) * share)
        is_chosen[start:end] = np.diff(steps) > 0
    return is_chosen


def _runs(values: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
    """Values cut where the sorted keys change."""
    return np.split(values, np.flatnonzero(np.diff(keys)) + 1) if values.size else []


class _OpenRows:
    """Rows that still have space, as runs of consecutive row numbers by space."""

    def __init__(self, seq_len: int, loads: np.ndarray):
        self.seq_len = seq_len
        self.count = loads.size  # rows opened so far
        self._spaces: list[int] = []  # sorted, without repeats
        self._runs: dict[int, deque[np.ndarray]] = {}
        fullest_first = longest_first(loads, seq_len)
        for rows in _runs(fullest_first, loads[fullest_first]):
            self._add(seq_len - int(loads[rows[0]]), rows)

    def place(self, documents: np.ndarray, length: int, row_of: np.ndarray | None) -> None:
        """Put documents of one length into the fullest rows that take them, opening rows when none does. The rows are
        noted in `row_of`, if it is wanted."""
        while documents.size:
            at = bisect_left(self._spaces, length)
            if at < len(self._spaces):
                space = self._spaces[at]
                rows = self._take(space, -(-documents.size // (space // length)))
            else:
                space = self.seq_len
                needed = -(-documents.size // (space // length))
                rows = np.arange(self.count, self.count + needed, dtype=np.int64)
                self.count += needed
            documents = self._fill(rows, space, documents, length, row_of)

    def _fill(
        self, rows: np.ndarray, space: int, documents: np.ndarray, length: int, row_of: np.ndarray | None
    ) -> np.ndarray:
        """Fill each row with as many documents as it takes; the documents that are left."""
        per_row = space // length
        placed = min(documents.size, rows.size * per_row)
        if row_of is not None:
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
