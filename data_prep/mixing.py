"""From all tokenized documents to how often each is used: duplicates out, parts taken, eval split, mixture.

Everything works on flat arrays with one entry per document, in the order of the recipe's sources and of their rows.
Choices are made by a hash of (seed, tokens), so they depend neither on the number of workers nor on other sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.near_duplicates import Border, cluster_ids, roots, unite
from data_prep.recipe import Recipe, Source
from data_prep.selection import selection_order
from data_prep.weighting import amounts, assign_copies

TRAIN, EVAL, UNUSED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Documents:
    """What the plan knows of each document: (documents,) arrays."""

    length: np.ndarray  # int32, tokens
    trained: np.ndarray  # int32, trained tokens
    content: np.ndarray  # uint64, hash of the ids and labels of the row's documents: rows of the same are duplicates
    tokens: np.ndarray  # uint64, hash of the document's ids: the eval split tears no two of the same apart
    source: np.ndarray  # int32, index into recipe.sources
    row: np.ndarray  # int64, row in the raw source; a row that was split is several documents, one after the other
    task_type: np.ndarray  # uint8, index into task_types.TASK_TYPES or UNKNOWN
    signature: np.ndarray | None = None  # (documents, num_perm) uint8, if the recipe looks for near duplicates
    border: Border | None = None  # the second signatures of some

    def __len__(self) -> int:
        return int(self.length.size)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How the documents are used."""

    split: np.ndarray  # (documents,) int8: TRAIN, EVAL or UNUSED
    copies: np.ndarray  # (documents,) int32: how often it is used in its split
    duplicate_of: np.ndarray  # (documents,) int64: the document it repeats, exactly or nearly, or -1
    is_near: np.ndarray  # (documents,) bool: it repeats it nearly, not exactly
    shares: list[dict[str, Any]]  # per source: what was asked for and what came out
    notes: list[str]  # what could not be reached


def mix(documents: Documents, recipe: Recipe) -> Mixture:
    """Apply the recipe's `take`, `deduplicate`, `eval_fraction` and weights."""
    near = None
    if documents.signature is not None and recipe.near_duplicates is not None:
        near = cluster_ids(documents.signature, recipe.near_duplicates, documents.border)
    rank = selection_order(documents.content, recipe.seed)
    split, duplicate_of, is_near = _choose(documents, recipe, near, rank)
    _split_eval(documents, recipe, _clusters(documents, near), split)
    copies, notes = assign_copies(documents, recipe, rank, split == TRAIN)
    copies[split == EVAL] = 1
    split[copies == 0] = UNUSED
    shares = _shares(documents, recipe, split, copies)
    return Mixture(split, copies, duplicate_of, is_near, shares, notes + _empty_splits(recipe, shares))


def _choose(
    documents: Documents, recipe: Recipe, near: np.ndarray | None, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source by source: what repeats a document that an earlier source uses, or an earlier one of the same, is out; of
    the rest, `take` chooses.

    Returns:
        (documents,) split (TRAIN or UNUSED), duplicate_of, is_near.
    """
    split = np.full(len(documents), UNUSED, dtype=np.int8)
    duplicate_of = np.full(len(documents), -1, dtype=np.int64)
    is_near = np.zeros(len(documents), dtype=bool)
    keys = [_Firsts(np.unique(documents.content, return_inverse=True)[1], False)] if recipe.deduplicate else []
    if near is not None and recipe.near_duplicates is not None and recipe.near_duplicates.drop:
        keys.append(_Firsts(near, True))
    for index, source in enumerate(recipe.sources):
        mine = np.flatnonzero(documents.source == index)
        for key in keys:
            original = key.of(mine)
            own = (documents.row[original] == documents.row[mine]) & (documents.source[original] == index)
            duplicate_of[mine[~own]] = original[~own]
            is_near[mine[~own]] = key.is_near
            mine = mine[own]
        taken = _take(mine, documents, rank, source.take)
        split[taken] = TRAIN
        for key in keys:
            key.use(taken)
    return split, duplicate_of, is_near


class _Firsts:
    """The first document of each key among those in use."""

    def __init__(self, key: np.ndarray, is_near: bool):
        """`key`: (documents,) integers below the number of documents."""
        self.is_near = is_near
        self._key = key
        self._used = np.full(key.size, -1, dtype=np.int64)
        self._first = np.empty(key.size, dtype=np.int64)

    def of(self, mine: np.ndarray) -> np.ndarray:
        """For each of these documents, the one in use with its key, else the first of these."""
        key = self._key[mine]
        first = self._used[key]
        self._first[key[::-1]] = mine[::-1]  # of equal keys, the first stays
        return np.where(first < 0, self._first[key], first)

    def use(self, taken: np.ndarray) -> None:
        """These documents are used; they come after those that are already."""
        new = taken[self._used[self._key[taken]] < 0]
        self._used[self._key[new[::-1]]] = new[::-1]


def _clusters(documents: Documents, near: np.ndarray | None) -> np.ndarray:
    """(documents,) uint64: one key for all documents that may not be torn apart by the eval split: those of the same
    tokens, of near duplicates, and of one row."""
    numbers = np.arange(len(documents))
    same_row = 1 + np.flatnonzero((np.diff(documents.row) == 0) & (np.diff(documents.source) == 0))
    if near is None and not same_row.size:
        return documents.tokens
    _, first, inverse = np.unique(documents.tokens, return_index=True, return_inverse=True)
    clusters = first[inverse]
    unite(clusters, same_row - 1, same_row)
    if near is not None:
        unite(clusters, near, numbers)
    return documents.tokens[roots(clusters, numbers)]


def _take(mine: np.ndarray, documents: Documents, rank: np.ndarray, take: int | float | None) -> np.ndarray:
    """The documents of so many rows, in ascending order."""
    if take is None or not mine.size:
        return mine
    by_rank = mine[np.argsort(rank[mine], kind="stable")]  # a row's documents have one rank, and stay together
    rows = np.cumsum(np.diff(documents.row[by_rank], prepend=-1) != 0)
    return np.sort(by_rank[rows <= (take if isinstance(take, int) else round(take * int(rows[-1])))])


def _split_eval(documents: Documents, recipe: Recipe, cluster: np.ndarray, split: np.ndarray) -> None:
    """The documents with the smallest keys of each source go to eval, and so does whatever is in their clusters."""
    rank = selection_order(cluster, recipe.seed)
    held_out = np.zeros(len(documents), dtype=bool)
    used = np.flatnonzero(split == TRAIN)
    is_first = np.zeros(len(documents), dtype=bool)  # a cluster belongs to the first of its documents that is used
    is_first[used[np.unique(cluster[used], return_index=True)[1]]] = True
    for index, source in enumerate(recipe.sources):
        mine = np.flatnonzero((documents.source == index) & is_first)
        number = round(_eval_fraction(source, recipe) * mine.size)
        held_out[mine[np.argsort(rank[mine], kind="stable")[:number]]] = True
    in_eval = np.isin(cluster, cluster[held_out])
    split[in_eval & (split == TRAIN)] = EVAL


def _eval_fraction(source: Source, recipe: Recipe) -> float:
    return recipe.eval_fraction if source.eval_fraction is None else source.eval_fraction


def _empty_splits(recipe: Recipe, shares: list[dict[str, Any]]) -> list[str]:
    """What a table of numbers hides: sources that one of the splits lacks."""
    notes = []
    for source, share in zip(recipe.sources, shares, strict=True):
        fraction = _eval_fraction(source, recipe)
        if fraction and not share["eval_documents"]:
            notes.append(f"source {source.name}: no document is in eval: eval_fraction {fraction:g} of its own is none")
        if not share["train_uses"]:
            notes.append(f"source {source.name}: no document is trained on")
    return notes


def _shares(documents: Documents, recipe: Recipe, split: np.ndarray, copies: np.ndarray) -> list[dict[str, Any]]:
    amount = amounts(documents, recipe) * np.where(split == TRAIN, copies, 0)
    total = max(int(amount.sum()), 1)
    asked = sum(s.weight or 0.0 for s in recipe.sources)
    shares = []
    for index, source in enumerate(recipe.sources):
        mine = documents.source == index
        used = copies[mine & (split == TRAIN)]
        shares.append(
            {
                "source": source.name,
                "asked": None if source.weight is None else round(source.weight / asked, 6),
                "got": round(int(amount[mine].sum()) / total, 6),
                "train_documents": int((used > 0).sum()),
                "train_uses": int(used.sum()),
                "eval_documents": int((mine & (split == EVAL)).sum()),
            }
        )
    return shares
