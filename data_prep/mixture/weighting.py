"""How often each training document is used: by weights, repeats, the budget and the balance of task types.

`weight`: sources get shares of the mixture; without a budget it is as large as the scarcest source allows when its
documents are used at most `max_repeats` times. `repeat`: the number of times that a source is used. `balance`: within a
source, each task type gets at most an equal share, rare ones repeated up to `max_repeats` times. A budget
(`total_tokens`, `total_epochs`) scales everything. Fractions of a pass take the documents with the smallest selection
keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.mixture.documents import Documents
from data_prep.mixture.equal_keys import argsort_keys, index_type
from data_prep.recipe import MOST_PASSES, Recipe, Source


@dataclass(frozen=True, slots=True)
class _Group:
    """Documents of one source that are used equally often."""

    members: np.ndarray  # document numbers
    available: float  # amount of all of them, in the weight unit
    base: float  # amount of one pass over the source

    @property
    def most(self) -> float:
        """The largest number of passes at one use of each document."""
        return self.available / self.base


def assign_copies(
    documents: Documents, recipe: Recipe, rank: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Uses of each document, and notes on what could not be reached.

    Args:
        rank: (documents,) uint64 selection keys.
        train: (documents,) bool: the training documents.

    Returns:
        (documents,) int32 copies, 0 outside of `train`; sentences for the user.

    Raises:
        ValueError: a source with a weight has no training document, or the budget asks for absurdly many passes.
    """
    amount = amounts(documents, recipe)
    sources = [s for s in recipe.sources if not s.eval]
    groups = [_groups(s, documents, recipe, train, amount) for s in sources]
    passes, notes = _passes(sources, groups, documents, recipe, amount) if any(groups) else (np.zeros(len(groups)), [])
    if (passes > MOST_PASSES).any():
        raise ValueError(
            f"the mixture would use the rows of a source {passes.max():,.0f} times each; at most {MOST_PASSES:,} times "
            "make sense: lower `total_tokens` or `total_epochs`, or give the source more rows"
        )
    copies = np.zeros(len(documents), dtype=np.int32)
    for mine, number in zip(groups, passes, strict=True):
        for group in mine:
            _use(group, number * group.base, amount, rank, copies)
    return copies, notes


def amounts(documents: Documents, recipe: Recipe) -> np.ndarray:
    """(documents,) int32: what `weight_unit` counts."""
    if recipe.weight_unit == "rows":
        return np.broadcast_to(np.int32(1), len(documents))
    return documents.trained if recipe.weight_unit == "trained_tokens" else documents.length


def limit(source: Source, recipe: Recipe) -> float:
    """How often a document of the source may be used for the sake of shares."""
    return recipe.max_repeats if source.max_repeats is None else source.max_repeats


def _groups(
    source: Source, documents: Documents, recipe: Recipe, train: np.ndarray, amount: np.ndarray
) -> list[_Group]:
    mine = np.flatnonzero((documents.source == recipe.sources.index(source)) & train)
    mine = mine.astype(index_type(train.size))
    if source.balance is None or not mine.size:
        have = _sum(amount[mine])
        return [_Group(mine, have, have)] if mine.size else []
    types = documents.task_type[mine]
    by_type = [mine[types == t] for t in np.unique(types)]
    equal = _sum(amount[mine]) / len(by_type)
    have_each = [_sum(amount[members]) for members in by_type]
    most = limit(source, recipe)
    return [_Group(m, have, min(equal, most * have)) for m, have in zip(by_type, have_each, strict=True)]


def _sum(values: np.ndarray) -> float:
    return float(values.sum(dtype=np.int64))


def _passes(
    sources: list[Source], groups: list[list[_Group]], documents: Documents, recipe: Recipe, amount: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """(sources,) number of passes over each source."""
    one_pass = np.array([sum(g.base for g in mine) for mine in groups])
    tokens = np.array([sum(g.base * _tokens_per_amount(g, documents, amount) for g in mine) for mine in groups])
    if sources[0].weight is None:
        passes = np.array([s.repeat or 1.0 for s in sources])
        return passes * _budget_factor(recipe, passes * tokens, passes * one_pass, one_pass), []
    empty = [s.name for s, mine in zip(sources, groups, strict=True) if not mine]
    if empty:
        raise ValueError(f"sources {empty} have a weight but no training document is left of them: see dropped/")
    weights = np.array([s.weight for s in sources], dtype=np.float64)
    most = np.array([min(limit(s, recipe) * g.most for g in mine) for s, mine in zip(sources, groups, strict=True)])
    if recipe.total_tokens is None and recipe.total_epochs is None:
        total = (most * one_pass / weights).min()
        return weights * total / one_pass, []
    wanted = weights / one_pass  # passes, up to a common factor
    wanted *= _budget_factor(recipe, wanted * tokens, wanted * one_pass, one_pass)
    notes = [
        f"source {s.name}: its share needs {w:.2f} uses of each row, max_repeats allows {m:.2f}: it gets less"
        for s, w, m in zip(sources, wanted, most, strict=True)
        if w > m * (1 + 1e-9)
    ]
    return np.minimum(wanted, most), notes


def _budget_factor(recipe: Recipe, tokens: np.ndarray, amount: np.ndarray, one_pass: np.ndarray) -> float:
    """By how much to multiply all passes to meet the budget; 1 without one."""
    if recipe.total_tokens is not None:
        return recipe.total_tokens / float(tokens.sum())
    if recipe.total_epochs is not None:
        return recipe.total_epochs * float(one_pass.sum()) / float(amount.sum())
    return 1.0


def _tokens_per_amount(group: _Group, documents: Documents, amount: np.ndarray) -> float:
    return _sum(documents.length[group.members]) / _sum(amount[group.members])


def _use(group: _Group, wanted: float, amount: np.ndarray, rank: np.ndarray, copies: np.ndarray) -> None:
    """Use all documents the same number of times, and the first ones once more, to come nearest below `wanted`."""
    whole = int(wanted / group.available + 1e-9)
    copies[group.members] = whole
    left = wanted - whole * group.available + 1e-6
    if left < amount[group.members].min():
        return
    by_rank = group.members[argsort_keys(rank[group.members])]
    reached = np.cumsum(amount[by_rank], dtype=np.int64)
    copies[by_rank[: np.searchsorted(reached, left, side="right")]] += 1
