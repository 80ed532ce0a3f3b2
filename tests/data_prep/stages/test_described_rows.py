"""Task types and languages: of each row of a small source, of a sample of a large one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import Conversation, Message
from data_prep.mixture.selection_order import selection_order
from data_prep.quality.languages import LANGUAGES
from data_prep.quality.task_types import TASK_TYPES, UNKNOWN
from data_prep.recipe import Recipe, Source
from data_prep.report.build import _described
from data_prep.sources.slices import Slice
from data_prep.stages.described_rows import SAMPLED_ROWS, Described

TALK = Conversation((Message("user", "Summarize this text for me"), Message("assistant", "No.")), "s", 0)


def described(rows: int, **options) -> Described:
    slices = [Slice("s", i, "x", 0, 1, i, n, 0) for i, n in enumerate((rows - rows // 2, rows // 2))]
    return Described.of_source(Source(name="s", path="x", form="alpaca", **options), slices)


@pytest.mark.parametrize("rows", [1, SAMPLED_ROWS, 2 * SAMPLED_ROWS - 1])
def test_every_row_of_a_small_source(rows):
    expected = (TASK_TYPES.index("summarisation"), LANGUAGES.index("en"))
    assert {described(rows).describe(TALK, content) for content in (0, 1, 2**63, 2**64 - 1)} == {expected}


def test_a_sample_of_a_large_source_that_the_plan_uses_first():
    rows = 7 * SAMPLED_ROWS
    contents = np.random.default_rng(0).integers(0, 2**64, rows, dtype=np.uint64)
    chosen = np.array([described(rows).describe(TALK, c) != (UNKNOWN, UNKNOWN) for c in contents.tolist()])
    assert chosen.sum() == pytest.approx(SAMPLED_ROWS, rel=0.05)
    seed = Recipe.model_fields["seed"].default
    first = np.argsort(selection_order(contents, seed))[: chosen.sum()]
    assert set(first) == set(np.flatnonzero(chosen))  # what `take`, or a part of a pass, would use


@given(content=st.integers(0, 2**64 - 1), seed=st.integers(0, 2**63 - 1))
def test_one_selection_key_is_that_of_many(content, seed):
    assert selection_order(content, seed) == selection_order(np.array([content], dtype=np.uint64), seed)[0]


def test_balance_needs_the_task_type_of_each_row():
    contents = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64).tolist()
    found = [described(100 * SAMPLED_ROWS, balance="task_type").describe(TALK, content) for content in contents]
    assert UNKNOWN not in {task_type for task_type, _ in found}
    assert 0 < sum(language != UNKNOWN for _, language in found) < 100


def test_a_source_that_is_sampled_counts_in_full():
    """Of two sources alike in size, one is looked at in a tenth of its documents."""
    source = np.repeat([0, 1], 1000)
    codes = np.where(source == 0, 2, 5).astype(np.uint8)
    codes[1000:][np.arange(1000) % 10 > 0] = UNKNOWN
    shares = _described(codes, source, {"rows": np.ones(2000)}, TASK_TYPES)
    assert shares["rows"] == {TASK_TYPES[2]: 0.5, TASK_TYPES[5]: 0.5}
    assert shares["looked_at"] == 1100


def test_nothing_looked_at_is_no_share():
    codes = np.full(3, UNKNOWN, dtype=np.uint8)
    assert _described(codes, np.zeros(3, dtype=int), {"rows": np.ones(3)}, LANGUAGES) == {"rows": {}, "looked_at": 0}
