"""Statistics: equal to numpy's on the plain arrays, to brute force, and to what a histogram and a density must be."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.report.length_statistics import (
    density,
    describe,
    expected_longest,
    histogram,
    histogram_edges,
    length_counts,
    padding,
    percentile,
    shares,
)

documents = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)), min_size=1, max_size=40).filter(
    lambda rows: any(copies for _, copies in rows)
)


@settings(max_examples=200, deadline=None)
@given(documents)
def test_describe_equals_numpy_on_the_repeated_documents(rows):
    lengths, copies = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
    used = np.repeat(lengths, copies)
    found = describe(length_counts(lengths, 64, copies))
    assert (found["rows"], found["tokens"]) == (used.size, used.sum())
    assert (found["min"], found["max"]) == (used.min(), used.max())
    assert found["mean"] == pytest.approx(used.mean(), abs=0.006)
    assert found["std"] == pytest.approx(used.std(), abs=0.006)
    for name, percent in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert found[name] == pytest.approx(np.percentile(used, percent), abs=0.006)


def test_describe_of_nothing():
    assert describe(length_counts(np.empty(0, dtype=np.int32), 64)) == {"rows": 0, "tokens": 0}


@settings(max_examples=100, deadline=None)
@given(documents)
def test_every_use_is_in_one_bin(rows):
    lengths, copies = (np.array(column, dtype=np.int32) for column in zip(*rows, strict=True))
    counts = length_counts(lengths, 64, copies)
    edges = histogram_edges(counts, bins=7)
    bins = histogram(counts, edges)
    assert bins.sum() == copies.sum() and edges[0] == 0 and edges[-1] >= percentile(counts, 99)
    assert len(set(np.diff(edges))) == 1 and bins.size == edges.size - 1
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = (lengths > low) & ((lengths <= high) | (i == bins.size - 1))
        assert bins[i] == copies[inside].sum()


@pytest.mark.parametrize("seq_len", [64, 4096])
def test_density_integrates_to_one_and_follows_the_lengths(seq_len):
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(seq_len / 4, seq_len / 40, 20_000).round(), 1, seq_len).astype(int)
    points = np.arange(seq_len + 1)
    found = density(length_counts(lengths, seq_len), points)
    assert found.sum() == pytest.approx(1, abs=1e-6) and found.min() >= 0
    assert abs(int(found.argmax()) - seq_len / 4) < seq_len / 40


def test_density_equals_the_sum_of_gaussians():
    lengths = np.array([20, 30, 31, 45])
    std, iqr = lengths.std(), np.subtract(*np.percentile(lengths, [75, 25])) / 1.34
    bandwidth = max(0.9 * min(std, iqr) * 4**-0.2, 1.0)
    points = np.arange(65)
    gaussians = np.exp(-0.5 * ((points[:, None] - lengths) / bandwidth) ** 2).sum(1) / (
        4 * bandwidth * np.sqrt(2 * np.pi)
    )
    assert density(length_counts(lengths, 64), points) == pytest.approx(gaussians, abs=1e-4)


def test_density_keeps_its_mass_at_the_borders():
    for lengths in ([1] * 50 + [2] * 30 + [9] * 3, [64] * 50 + [60] * 40):
        assert density(length_counts(np.array(lengths), 64), np.arange(65)).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 9])
def test_expected_longest_equals_all_batches(batch_size):
    lengths = [3, 8, 8, 2, 13, 5]
    size = min(batch_size, len(lengths))  # a batch of more than there are holds them all
    mean = np.mean([max(batch) for batch in combinations(lengths, size)])
    assert expected_longest(length_counts(np.array(lengths), 16), batch_size) == pytest.approx(mean)


def test_padding_against_positions_counted_by_hand():
    counts = length_counts(np.array([4, 4, 8]), 8)  # packed: 4 + 4 and 8, two full rows
    found = padding(counts, packed_rows=2, seq_len=8)
    assert found["efficiency"] == 1 and found["documents_per_row"] == 1.5
    assert found["padded_to_seq_len"] == {"positions": 24, "padding_share": 0.3333, "saved_share": 0.3333}
    assert found["padded_to_longest_of_4"]["positions"] == 24  # all three in one batch
    assert padding(length_counts(np.empty(0, dtype=int), 8), 0, 8) == {}


def test_shares_are_weighted_and_sorted():
    found = shares(np.array([2, 0, 2]), np.array([1, 5, 2]), ("a", "b", "c"))
    assert list(found.items()) == [("a", 0.625), ("c", 0.375)]
    assert shares(np.empty(0, dtype=int), np.empty(0), ("a",)) == {}


def test_millions_of_documents_at_128k_take_seconds():
    import time

    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 2_000_000), 1, 131_072).astype(np.int32)
    started = time.process_time()
    counts = length_counts(lengths, 131_072, np.ones(lengths.size, dtype=np.int32))
    edges = histogram_edges(counts)
    assert describe(counts)["rows"] == histogram(counts, edges).sum() == 2_000_000
    density(counts, edges)
    padding(counts, 20_000, 131_072)
    assert time.process_time() - started < 3
