"""Duplicates, parts, eval split and shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.mixture.documents import EVAL, TRAIN, UNUSED, Documents
from data_prep.mixture.mixing import mix
from data_prep.recipe import Recipe


def documents(
    content: list[int], source: list[int], length: list[int] | None = None, kinds=None, *, tokens=None, rows=None
) -> Documents:
    size = len(content)
    lengths = np.array(length or [10] * size, dtype=np.int32)
    return Documents(
        lengths,
        lengths // 2,
        np.array(content, dtype=np.uint64),
        np.array(tokens or content, dtype=np.uint64),
        np.array(source, dtype=np.int32),
        np.array(rows or range(size)),
        np.array(kinds or [0] * size, dtype=np.uint8),
    )


def recipe(*sources: dict, **options) -> Recipe:
    named = [{"name": f"s{i}", "path": "x.json", "form": "alpaca", **s} for i, s in enumerate(sources)]
    return Recipe.model_validate({"tokenizer": "t", "sources": named, "eval_fraction": 0.0, **options})


def test_duplicates_name_the_first_one():
    assert mix(documents([7, 3, 7, 3, 9], [0] * 5), recipe({})).duplicate_of.tolist() == [-1, -1, 0, 1, -1]


def test_a_duplicate_across_sources_stays_with_the_first_source():
    result = mix(documents([1, 2, 2, 3], [0, 0, 1, 1]), recipe({}, {}))
    assert result.split.tolist() == [TRAIN, TRAIN, UNUSED, TRAIN]
    assert result.duplicate_of.tolist() == [-1, -1, 1, -1]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=150),
    st.booleans(),
    st.integers(0, 9),
)
def test_no_content_is_in_both_splits(rows, deduplicate, seed):
    rows = sorted(rows, key=lambda row: row[1])
    result = mix(
        documents([c for c, _ in rows], [s for _, s in rows]),
        recipe({}, {}, {}, eval_fraction=0.3, deduplicate=deduplicate, seed=seed),
    )
    content = np.array([c for c, _ in rows])
    assert not set(content[result.split == TRAIN]) & set(content[result.split == EVAL])
    if not deduplicate:
        assert (result.split != UNUSED).all()


def test_the_same_tokens_with_other_labels_are_kept_on_one_side():
    tokens = [*range(100), *range(100)]
    docs = documents([*range(200)], [0] * 100 + [1] * 100, tokens=tokens)
    result = mix(docs, recipe({}, {}, eval_fraction=0.2))
    assert (result.split[:100] == result.split[100:]).all() and (result.split == EVAL).sum() == 40


def test_the_pieces_of_rows_that_share_one_are_kept_on_one_side():
    """Rows of two pieces, of which the first is that of the next row too: a chain of all."""
    tokens = [number for i in range(20) for number in (i, i + 1)]
    rows = [i for i in range(20) for _ in range(2)]
    result = mix(documents([100 + r for r in rows], [0] * 40, tokens=tokens, rows=rows), recipe({}, eval_fraction=0.5))
    assert np.unique(result.split).size == 1
    assert not (result.duplicate_of >= 0).any()


@pytest.mark.parametrize("deduplicate", [True, False])
def test_rows_that_take_leaves_out_take_no_other_sources_rows_away(deduplicate):
    docs = documents([*range(1000), *range(1000)], [0] * 1000 + [1] * 1000)
    result = mix(docs, recipe({"take": 10}, {}, deduplicate=deduplicate, eval_fraction=0.1))
    used = np.flatnonzero(result.split != UNUSED)
    assert (used < 1000).sum() == 10 and np.unique(docs.content[used]).size == 1000
    assert (result.duplicate_of >= 0).sum() == (10 if deduplicate else 0)
    assert set(result.duplicate_of[result.duplicate_of >= 0]) <= set(used)
    assert abs((result.split[1000:] == EVAL).sum() - 100) <= 2


@pytest.mark.parametrize(("take", "expected"), [(1, 4), (0.5, 20), (1.0, 40)])
def test_take_counts_rows_and_not_the_pieces_of_a_row(take, expected):
    rows = [i for i in range(10) for _ in range(4)]
    result = mix(documents(rows, [0] * 40, tokens=[*range(40)], rows=rows), recipe({"take": take}))
    assert (result.split == TRAIN).sum() == expected
    assert set(np.bincount(np.array(rows)[result.split == TRAIN])) <= {0, 4}


def test_a_source_that_a_split_lacks_is_said():
    result = mix(documents([*range(9), 0], [0] * 9 + [1]), recipe({}, {"eval_fraction": 0.0}, eval_fraction=0.05))
    assert [note.split(" document")[0] for note in result.notes] == ["source s0: no", "source s1: no"]
    assert "in eval" in result.notes[0] and "trained on" in result.notes[1]


def test_eval_fraction_is_exact_per_source_and_can_differ():
    docs = documents(list(range(300)), [0] * 200 + [1] * 100)
    result = mix(docs, recipe({}, {"eval_fraction": 0.1}, eval_fraction=0.05))
    assert [(result.split[docs.source == i] == EVAL).sum() for i in (0, 1)] == [10, 10]


def test_the_split_does_not_depend_on_other_sources():
    alone = mix(documents(list(range(100)), [0] * 100), recipe({}, eval_fraction=0.1))
    together = mix(documents(list(range(150)), [0] * 100 + [1] * 50), recipe({}, {}, eval_fraction=0.1))
    assert (alone.split == together.split[:100]).all()


def test_another_seed_splits_otherwise():
    splits = [mix(documents(list(range(100)), [0] * 100), recipe({}, eval_fraction=0.1, seed=s)).split for s in (1, 2)]
    assert (splits[0] != splits[1]).any()


@pytest.mark.parametrize(("take", "expected"), [(30, 30), (0.25, 50), (5000, 200)])
def test_take_a_number_or_a_share(take, expected):
    result = mix(documents(list(range(200)), [0] * 200), recipe({"take": take}))
    assert (result.split == TRAIN).sum() == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=4),
    st.lists(st.integers(50, 400), min_size=4, max_size=4),
    st.sampled_from(["rows", "tokens", "trained_tokens"]),
    st.floats(1.0, 3.0),
)
def test_shares_are_as_asked(weights, sizes, unit, max_repeats):
    source = np.repeat(np.arange(len(weights)), sizes[: len(weights)])
    lengths = np.random.default_rng(0).integers(4, 40, source.size)
    docs = documents(list(range(source.size)), source.tolist(), lengths.tolist())
    result = mix(docs, recipe(*({"weight": w} for w in weights), weight_unit=unit, max_repeats=max_repeats))
    amount = {"rows": np.ones(source.size), "tokens": docs.length, "trained_tokens": docs.trained}[unit]
    used = np.array([(amount * result.copies)[source == i].sum() for i in range(len(weights))])
    # Each source is within one document of its share of the common total.
    total = (max_repeats * np.array([amount[source == i].sum() for i in range(len(weights))]) / weights).min()
    assert (np.abs(used - np.array(weights) * total) <= amount.max() + 1e-6).all()
    assert result.copies.max() <= np.ceil(max_repeats)
    for i in range(len(weights)):  # no document is used twice more often than another of its source
        mine = result.copies[source == i]
        assert mine.max() - mine.min() <= 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 10.0), st.integers(20, 200), st.floats(1.0, 4.0)), min_size=1, max_size=4),
    st.integers(1, 30_000),
    st.integers(0, 9),
)
def test_shares_of_a_budget_are_as_asked_or_as_much_as_repeats_allow(sources, budget, seed):
    source = np.repeat(np.arange(len(sources)), [size for _, size, _ in sources])
    lengths = np.random.default_rng(seed).integers(4, 40, source.size)
    docs = documents(list(range(source.size)), source.tolist(), lengths.tolist())
    asked = [{"weight": w, "max_repeats": m} for w, _, m in sources]
    result = mix(docs, recipe(*asked, weight_unit="tokens", total_tokens=budget, seed=seed))
    total = sum(w for w, _, _ in sources)
    for i, (weight, _, repeats) in enumerate(sources):
        mine = result.copies[source == i]
        most = repeats * docs.length[source == i].sum()
        wanted = budget * weight / total
        assert abs((docs.length * result.copies)[source == i].sum() - min(wanted, most)) <= docs.length.max() + 1e-6
        assert mine.max() - mine.min() <= 1 and mine.max() <= np.ceil(repeats)
        is_said = any(note.startswith(f"source s{i}: its share") for note in result.notes)
        assert is_said == (wanted > most) or abs(wanted - most) < 1e-6 * most


def test_an_absurd_budget_and_no_training_document_are_no_crash():
    with pytest.raises(ValueError, match=r"rows of a source 1,000,000,000 times each.* lower `total_tokens`"):
        mix(documents([1], [0]), recipe({}, total_tokens=10**10))
    result = mix(documents([1], [0]), recipe({}, total_tokens=100, eval_fraction=0.9))
    assert result.split.tolist() == [EVAL]


def test_a_weighted_source_without_documents_is_refused():
    with pytest.raises(ValueError, match=r"\['s1'\] have a weight but no training document"):
        mix(documents([1, 2], [0, 0]), recipe({"weight": 1}, {"weight": 1}))


def uses(docs: Documents, result) -> list[int]:
    return [
        int(result.copies[(docs.source == i) & (result.split == TRAIN)].sum()) for i in range(docs.source.max() + 1)
    ]


def test_repeat_uses_a_source_so_many_times():
    docs = documents(list(range(300)), [0] * 200 + [1] * 100)
    result = mix(docs, recipe({"repeat": 0.5}, {"repeat": 2.5}, weight_unit="rows"))
    assert uses(docs, result) == [100, 250]
    assert set(result.copies[:200]) == {0, 1} and set(result.copies[200:]) == {2, 3}


@pytest.mark.parametrize(("budget", "expected"), [({"total_tokens": 6000}, 6000), ({"total_epochs": 1.5}, 4500)])
def test_a_budget_scales_the_whole_mixture(budget, expected):
    docs = documents(list(range(300)), [0] * 200 + [1] * 100)  # of 10 tokens each
    result = mix(docs, recipe({}, {}, **budget))
    assert abs(sum(uses(docs, result)) * 10 - expected) <= 20
    assert uses(docs, result)[0] == pytest.approx(2 * uses(docs, result)[1], abs=2)


def test_a_share_that_max_repeats_forbids_is_said():
    docs = documents(list(range(300)), [0] * 200 + [1] * 100)
    result = mix(docs, recipe({"weight": 1}, {"weight": 3, "max_repeats": 2}, total_tokens=4000, weight_unit="rows"))
    assert uses(docs, result) == [100, 200]  # 400 rows asked, 300 of them from the second: it has 100
    assert result.notes == ["source s1: its share needs 3.00 uses of each row, max_repeats allows 2.00: it gets less"]
    assert [share["asked"] for share in result.shares] == [0.25, 0.75]


def test_balance_evens_out_the_task_types():
    kinds = [0] * 80 + [1] * 15 + [2] * 5
    docs = documents(list(range(100)), [0] * 100, kinds=kinds)
    result = mix(docs, recipe({"balance": "task_type", "max_repeats": 2}, weight_unit="rows"))
    by_type = [int(result.copies[docs.task_type == t].sum()) for t in range(3)]
    assert by_type == [33, 30, 10]  # an equal share of 100 is 33; the others are used at most twice


def test_a_balanced_source_keeps_its_weight():
    kinds = [0] * 80 + [1] * 20 + [0] * 100
    docs = documents(list(range(200)), [0] * 100 + [1] * 100, kinds=kinds)
    sources = ({"weight": 1, "balance": "task_type"}, {"weight": 1})
    result = mix(docs, recipe(*sources, weight_unit="rows"))
    assert uses(docs, result) == [70, 70]  # 50 and 20 of the two types, each at most once
    assert [int(result.copies[:100][docs.task_type[:100] == t].sum()) for t in (0, 1)] == [50, 20]


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (({"weight": 1, "repeat": 2},), {}, "both say how often"),
        (({"stage": 1},), {}, "only `order: curriculum` looks at"),
        (({},), {"max_repeats": 2}, "limits weights and `balance` only"),
        (({},), {"total_tokens": 5, "total_epochs": 1}, "both set the size"),
    ],
)
def test_contradictions_are_refused(sources, options, message):
    with pytest.raises(ValueError, match=message):
        recipe(*sources, **options)


def test_a_duplicate_of_the_same_row_number_in_another_source_is_one():
    """Each source counts its rows from 0."""
    result = mix(documents([1, 2, 1, 3], [0, 0, 1, 1], rows=[0, 1, 0, 1]), recipe({}, {}))
    assert result.split.tolist() == [TRAIN, TRAIN, UNUSED, TRAIN]
    assert result.duplicate_of.tolist() == [-1, -1, 0, -1]


def test_a_share_that_max_repeats_just_allows_is_no_note():
    docs = documents(list(range(300)), [0] * 200 + [1] * 100)
    result = mix(docs, recipe({"weight": 1}, {"weight": 1}, total_tokens=2000))
    assert uses(docs, result) == [100, 100] and result.notes == []
