"""The plan's packed rows: in an order that chance decides, stage after stage, each document where it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.mixture.documents import TRAIN, Documents, Mixture
from data_prep.recipe import Recipe
from data_prep.stages.plan_stage import SplitPlan, _pack_split

SEQ_LEN = 1000


def packed(lengths: np.ndarray, stages: tuple[int, ...] = (0,), copies: np.ndarray | None = None) -> SplitPlan:
    """The train split's plan of documents that belong to one source for each of `stages`, in equal parts."""
    size = lengths.size
    source = np.repeat(np.arange(len(stages)), size // len(stages))
    numbers = np.arange(size, dtype=np.uint64)
    documents = Documents(lengths, lengths, numbers, numbers, source, numbers, np.zeros(size, dtype=np.uint8))
    used = np.ones(size, dtype=np.int32) if copies is None else copies
    nowhere, no = np.full(size, -1), np.zeros(size, dtype=bool)
    mixture = Mixture(np.full(size, TRAIN, dtype=np.int8), used, nowhere, no, [], [])
    sources = [{"name": f"s{i}", "path": "x", "form": "alpaca", "stage": stage} for i, stage in enumerate(stages)]
    options = {"tokenizer": "t", "seq_len": SEQ_LEN, "sources": sources, "seed": 7}
    recipe = Recipe.model_validate({**options, "order": "curriculum" if any(stages) else "shuffled"})
    return _pack_split(documents, mixture, recipe, TRAIN)


@pytest.mark.parametrize("stages", [(0,), (0, 1), (2, 1)])
def test_packed_rows_are_shuffled_within_each_stage(stages):
    """Documents longer than half a row: one in each row, and packing alone would begin with the longest."""
    lengths = np.tile(np.arange(501, 901), len(stages)).astype(np.int32)
    plan = packed(lengths, stages)
    assert (np.diff(plan.starts) == 1).all()
    by_stage = np.split(plan.uses, len(stages))
    for uses, source in zip(by_stage, np.argsort(stages), strict=True):
        assert set(uses // 400) == {source}  # one stage after the other
        order = lengths[uses].astype(float)
        assert sorted(order) == list(range(501, 901))
        # By chance, the correlation with the place lies within four standard deviations of 0, each of 1 / sqrt(400).
        assert abs(np.corrcoef(order, np.arange(400))[0, 1]) < 0.2
    if len(stages) > 1:
        assert (lengths[by_stage[0]] != lengths[by_stage[1]]).any()  # not the same shuffle twice


def test_which_documents_of_one_length_share_a_row_is_by_chance():
    """Packing alone would pair each with the one that comes half of them later."""
    plan = packed(np.full(400, SEQ_LEN // 2, dtype=np.int32))
    pairs = plan.uses.reshape(-1, 2)
    assert sorted(plan.uses) == list(range(400)) and (np.diff(plan.starts) == 2).all()
    assert np.unique(np.abs(pairs[:, 0] - pairs[:, 1])).size > 100


def test_a_document_is_placed_as_often_as_it_is_used():
    copies = np.array([0, 1, 2, 3] * 20, dtype=np.int32)
    plan = packed(np.full(80, 300, dtype=np.int32), copies=copies)
    assert np.bincount(plan.uses, minlength=80).tolist() == copies.tolist()
    assert plan.starts[0] == 0 and plan.starts[-1] == copies.sum() and np.diff(plan.starts).max() == 3
