"""Packing: nothing lost or repeated, best-fit-decreasing as in the textbook, rows alike, near the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.mixture import packing
from data_prep.mixture.packing import best_fit_decreasing, pack

lengths_and_size = st.integers(1, 64).flatmap(
    lambda size: st.tuples(st.lists(st.integers(1, size), max_size=200), st.just(size))
)


def one_by_one(lengths: list[int], seq_len: int, loads: list[int]) -> list[int]:
    """Best-fit-decreasing as in the textbook, over rows begun with `loads`: the free space of each row."""
    spaces = [seq_len - load for load in loads]
    for length in sorted(lengths, reverse=True):
        fitting = [(space, row) for row, space in enumerate(spaces) if space >= length]
        if fitting:
            spaces[min(fitting)[1]] -= length
        else:
            spaces.append(seq_len - length)
    return sorted(spaces)


def filled(row_of: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(row_of, weights=lengths, minlength=count).astype(int)


def lognormal(mean: float, number: int) -> np.ndarray:
    return np.clip(np.random.default_rng(0).lognormal(mean, 0.9, number).astype(int), 8, 4096)


def decreasing(lengths: np.ndarray) -> np.ndarray:
    return np.argsort(-lengths, kind="stable")


@settings(max_examples=300, deadline=None)
@given(lengths_and_size, st.lists(st.integers(0, 1), max_size=9))
def test_best_fit_decreasing_equals_the_textbook(case, begun):
    lengths, seq_len = np.array(case[0], dtype=np.int32), case[1]
    loads = np.array(begun, dtype=np.int64) * (seq_len // 2)
    row_of = np.empty(lengths.size, dtype=np.int64)
    row_of, count = best_fit_decreasing(lengths, seq_len, decreasing(lengths), (row_of, loads))
    tokens = filled(row_of, lengths, count)
    tokens[: loads.size] += loads
    assert sorted((seq_len - tokens).tolist()) == one_by_one(case[0], seq_len, loads.tolist())


@settings(max_examples=300, deadline=None)
@given(lengths_and_size)
def test_every_document_is_in_one_row_that_holds_it(case):
    lengths, seq_len = np.array(case[0], dtype=np.int32), case[1]
    row_of, count = pack(lengths, seq_len)
    tokens = filled(row_of, lengths, count)
    assert row_of.size == lengths.size and tokens.sum() == lengths.sum() and (tokens <= seq_len).all()
    assert sorted(set(row_of.tolist())) == list(range(count))  # no row is empty
    assert count <= len(one_by_one(case[0], seq_len, []))  # so few rows: none more for being alike


@pytest.mark.parametrize(("mean", "seq_len"), [(4, 2048), (4, 4096), (5, 4096), (5, 8192), (6.5, 8192), (7.5, 4096)])
def test_costs_at_most_a_row_in_a_thousand(mean, seq_len):
    lengths = np.minimum(lognormal(mean, 50_000), seq_len)
    row_of, count = pack(lengths, seq_len)
    assert (row_of == pack(lengths, seq_len)[0]).all()
    assert filled(row_of, lengths, count).max() <= seq_len
    assert count <= best_fit_decreasing(lengths, seq_len, decreasing(lengths))[1] * 1.001


@pytest.mark.parametrize("mean", [4, 5])
def test_short_documents_of_all_lengths_lie_in_each_row(mean):
    """The spread of the rows' mean document length, beside best-fit-decreasing's: a quarter."""
    lengths = lognormal(mean, 50_000)

    def spread(row_of: np.ndarray, count: int) -> float:
        means = filled(row_of, lengths, count) / np.bincount(row_of, minlength=count)
        return float(means.std() / means.mean())

    together = best_fit_decreasing(lengths, 8192, decreasing(lengths))
    assert spread(*pack(lengths, 8192)) < spread(*together) / 4


def test_leaves_no_gap(monkeypatch):
    lengths = lognormal(5, 50_000)
    row_of, count = pack(lengths, 4096)
    assert lengths.sum() / (count * 4096) > 0.999
    monkeypatch.setattr(packing, "_RESERVES", ())
    plain = best_fit_decreasing(lengths, 4096, decreasing(lengths))
    assert (pack(lengths, 4096)[0] == plain[0]).all() and (row_of != plain[0]).any()


@pytest.mark.parametrize("bad", [[0, 5], [9]])
def test_refuses_what_fits_no_row(bad):
    with pytest.raises(ValueError, match="from 1 to seq_len=8"):
        pack(np.array(bad), 8)
