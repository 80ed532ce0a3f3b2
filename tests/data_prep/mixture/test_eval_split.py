"""Groups: none lies in both splits, the eval share is met, one larger than it stays in training, eval sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.mixture.documents import EVAL, IN_EVAL, TRAIN, UNUSED, Documents, Questions
from data_prep.mixture.mixing import mix
from data_prep.quality.near_duplicates import Border
from data_prep.recipe import Recipe


def documents(content, source, group=None, *, signatures=None) -> Documents:
    size = len(content)
    lengths = np.full(size, 10, dtype=np.int32)
    hashes = np.array(content, dtype=np.uint64)
    questions = None
    if signatures is not None:
        none = Border(np.zeros(0, dtype=np.int64), np.zeros((0, 128), dtype=np.uint8))
        questions = Questions(np.arange(size), np.array(signatures, dtype=np.uint8), none)
    return Documents(
        *(lengths, lengths // 2, hashes, hashes, np.array(source, dtype=np.int16), np.arange(size, dtype=np.int32)),
        np.zeros(size, dtype=np.uint8),
        group=None if group is None else np.array(group, dtype=np.uint64),
        questions=questions,
    )


def recipe(*sources: dict, **options) -> Recipe:
    named = [{"name": f"s{i}", "path": "x.json", "form": "alpaca", **s} for i, s in enumerate(sources)]
    return Recipe.model_validate({"tokenizer": "t", "sources": named, **options})


ROWS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=150)
ROWS |= st.lists(st.tuples(st.integers(0, 60), st.just(0), st.integers(0, 12)), min_size=1, max_size=150)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.booleans(), st.integers(0, 9), st.sampled_from([0.1, 0.3, 0.6]))
def test_no_group_is_in_both_splits_and_no_more_is_held_out_than_asked(rows, deduplicate, seed, fraction):
    rows = sorted(rows, key=lambda row: row[1])
    content, source, group = (np.array(column) for column in zip(*rows, strict=True))
    options = {"eval_fraction": fraction, "deduplicate": deduplicate, "seed": seed}
    result = mix(documents(content, source, group), recipe({}, {}, {}, **options))
    splits = [set(values[result.split == split]) for split in (TRAIN, EVAL) for values in (content, group)]
    assert not splits[0] & splits[2] and not splits[1] & splits[3]
    if not source.any():  # of several, each may draw others' rows along
        different = np.unique(content[result.split != UNUSED]).size
        assert np.unique(content[result.split == EVAL]).size <= round(fraction * different)


def test_whole_groups_fill_the_share():
    """20 rows of 200 wanted, groups of three: six groups, and a pair of rows that are alone."""
    group = [i // 3 for i in range(180)] + [1000 + i for i in range(20)]
    result = mix(documents(range(200), [0] * 200, group), recipe({}, eval_fraction=0.1))
    held = result.split == EVAL
    assert held.sum() == 20
    assert set(np.bincount(np.array(group)[held])) <= {0, 1, 3} and not result.notes


@pytest.mark.parametrize("fraction", [0.05, 0.3])
def test_a_group_larger_than_the_share_stays_in_training_and_is_reported(fraction):
    group = [7] * 400 + list(range(1000, 1600))
    result = mix(documents(range(1000), [0] * 1000, group), recipe({}, eval_fraction=fraction))
    assert (result.split[:400] == TRAIN).all() and (result.split == EVAL).sum() == 1000 * fraction
    [note] = result.notes
    assert "source s0: 400 documents stay in training, as they are in groups larger than its eval share of" in note
    assert "row 0 of s0. `group_by` says what a group is" in note


def test_where_all_rows_share_a_first_message_none_is_held_out_and_it_is_said():
    result = mix(documents(range(100), [0] * 100, [1] * 100), recipe({}, eval_fraction=0.1))
    assert (result.split == TRAIN).all()
    assert [note.split(" documents")[0] for note in result.notes] == ["source s0: 100", "source s0: 0"]


def test_a_small_source_within_one_group_is_not_drawn_into_eval_by_another():
    """The second source's rows all share the question of one row of the first."""
    group = [*range(100), *[50] * 20]
    for seed in range(10):
        result = mix(documents(range(120), [0] * 100 + [1] * 20, group), recipe({}, {}, eval_fraction=0.2, seed=seed))
        assert (result.split[100:] == TRAIN).all() and result.split[50] == TRAIN
        assert (result.split[:100] == EVAL).sum() == 20


def test_sources_that_share_their_questions_hold_the_same_ones_out():
    result = mix(documents(range(400), [0] * 200 + [1] * 200, [*range(200)] * 2), recipe({}, {}, eval_fraction=0.1))
    assert (result.split[:200] == result.split[200:]).all() and (result.split == EVAL).sum() == 40


def test_similar_questions_are_one_group():
    near = np.random.default_rng(0).integers(0, 256, (100, 128))
    signatures = np.repeat(near, 2, axis=0)
    signatures[1::2, :8] += 1
    docs = documents(range(200), [0] * 200, range(200), signatures=signatures)
    result = mix(docs, recipe({}, eval_fraction=0.2, near_duplicates={"drop": False}))
    assert (result.split[::2] == result.split[1::2]).all() and (result.split == EVAL).sum() == 40


@pytest.mark.parametrize("deduplicate", [True, False])
def test_all_rows_of_an_eval_source_are_eval_and_what_is_in_their_groups_is_not_trained(deduplicate):
    content = [*range(100), *range(95, 115)]
    group = [*range(100), *range(95, 110), 3, 3, 4, 5, 6]
    docs = documents(content, [0] * 100 + [1] * 20, group)
    result = mix(docs, recipe({}, {"eval": True}, deduplicate=deduplicate))
    assert (result.split[100:] == EVAL).all() and (result.copies[100:] == 1).all()
    out = sorted([95, 96, 97, 98, 99, 3, 4, 5, 6])
    assert np.flatnonzero(result.split == UNUSED).tolist() == out
    assert (result.split[:100] == EVAL).sum() == 0
    assert [int(result.duplicate_of[i]) for i in (3, 4, 95)] == [115, 117, 100]
    assert [int(result.repeats[i]) for i in (3, 4)] == [IN_EVAL, IN_EVAL]
    assert result.shares[1] == {**result.shares[1], "train_uses": 0, "eval_documents": 20} and not result.notes


def test_an_eval_source_keeps_what_repeats_itself_and_takes_no_place_in_take():
    docs = documents([0, 0, 1, *range(100)], [0] * 3 + [1] * 100, [0, 0, 1, *range(100)])
    result = mix(docs, recipe({"eval": True}, {"take": 98}))
    assert (result.split[:3] == EVAL).all() and (result.split[5:] == TRAIN).all()
    assert (result.split[3:5] == UNUSED).all()


def test_weights_are_those_of_the_training_sources():
    docs = documents(range(300), [0] * 100 + [1] * 100 + [2] * 100, range(300))
    sources = ({"weight": 1}, {"eval": True}, {"weight": 3})
    result = mix(docs, recipe(*sources, weight_unit="rows"))
    used = [int(result.copies[(docs.source == i) & (result.split == TRAIN)].sum()) for i in range(3)]
    assert used == [33, 0, 100]
    assert [share["asked"] for share in result.shares] == [0.25, None, 0.75]


def test_with_an_eval_source_nothing_else_is_held_out_unless_it_is_asked():
    docs = documents(range(200), [0] * 100 + [1] * 100)
    for options, held in (({}, 0), ({"eval_fraction": 0.1}, 10)):
        result = mix(docs, recipe({}, {"eval": True}, **options))
        assert (result.split[:100] == EVAL).sum() == held
    assert recipe({}, {"eval": True}).eval_fraction == 0.0 and recipe({}).eval_fraction == 0.05


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (({}, {"eval": True, "weight": 1}), {}, "leave out `weight`"),
        (({}, {"eval": True, "eval_fraction": 0.1, "stage": 1}), {"order": "curriculum"}, "`stage`, `eval_fraction`"),
        (({"eval": True},), {}, "all sources are `eval: true`"),
        (({},), {"group_by": "colum"}, "group_by"),
        (({},), {"group_by": {"column": ""}}, "group_by"),
    ],
)
def test_contradictions_are_refused(sources, options, message):
    with pytest.raises(ValueError, match=message):
        recipe(*sources, **options)
