"""Orders and equal keys are numpy's own, for keys that differ in their lowest bits only, too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.mixture.equal_keys import argsort_keys, argsort_numbers, first_of_equal

KEYS = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 20), st.integers(0, 20).map(lambda i: 2**63 + i))


@given(st.lists(KEYS, max_size=200))
def test_both_are_numpys(found):
    keys = np.array(found, dtype=np.uint64)
    assert argsort_keys(keys).tolist() == np.argsort(keys, kind="stable").tolist()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    assert first_of_equal(keys).tolist() == first[inverse].tolist()


@pytest.mark.parametrize("different", [1, 7, 1000, 2**62])
def test_many_keys(different):
    keys = np.random.default_rng(0).integers(0, different, 100_000).astype(np.uint64)
    assert (argsort_keys(keys) == np.argsort(keys, kind="stable")).all()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    assert (first_of_equal(keys) == first[inverse]).all()
    assert argsort_keys(keys).dtype == first_of_equal(keys).dtype == np.int32


@pytest.mark.parametrize("most", [1, 2**16 - 1, 2**16, 2**40, 2**62])
def test_numbers_up_to_any_bound(most):
    values = np.random.default_rng(0).integers(0, most, 10_000, endpoint=True)
    values[:2] = most, 0
    assert (argsort_numbers(values, most) == np.argsort(values, kind="stable")).all()
    assert argsort_numbers(values[:0], most).size == 0
