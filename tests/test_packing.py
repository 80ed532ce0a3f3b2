"""Packing: nothing lost or repeated, the same rows as the one-by-one algorithm, near the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing import pack

lengths_and_size = st.integers(1, 64).flatmap(
    lambda size: st.tuples(st.lists(st.integers(1, size), max_size=200), st.just(size))
)


def one_by_one(lengths: list[int], seq_len: int) -> list[int]:
    """Best-fit-decreasing as in the textbook: the free space of each row."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(space, row) for row, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting)[1]] -= length
        else:
            spaces.append(seq_len - length)
    return sorted(spaces)


@settings(max_examples=300, deadline=None)
@given(lengths_and_size)
def test_equals_the_textbook(case):
    lengths, seq_len = case
    row_of, count = pack(np.array(lengths, dtype=np.int32), seq_len)
    filled = np.bincount(row_of, weights=lengths, minlength=count).astype(int)
    assert row_of.size == len(lengths) and filled.sum() == sum(lengths)  # every document is in exactly one row
    assert sorted((seq_len - filled).tolist()) == one_by_one(lengths, seq_len)
    assert count == 0 or sorted(set(row_of.tolist())) == list(range(count))


def test_is_deterministic_and_leaves_no_gap():
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.9, 50_000).astype(int), 8, 4096)
    first, count = pack(lengths, 4096)
    second, _ = pack(lengths, 4096)
    assert (first == second).all()
    assert lengths.sum() / (count * 4096) > 0.999


@pytest.mark.parametrize("bad", [[0, 5], [9]])
def test_refuses_what_fits_no_row(bad):
    with pytest.raises(ValueError, match="from 1 to seq_len=8"):
        pack(np.array(bad), 8)
