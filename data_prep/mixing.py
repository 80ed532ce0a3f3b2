"""From all tokenized documents to how often each is used: duplicates out, parts taken, eval split, mixture.

Everything works on flat arrays with one entry per document, in the order of the recipe's sources and of their rows.
Choices are made by a hash of (seed, content), so they depend neither on the number of workers nor on other sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.near_duplicates import Border, cluster_ids
from data_prep.recipe import Recipe
from data_prep.weighting import amounts, assign_copies

TRAIN, EVAL, UNUSED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Documents:
    """What the plan knows of each document: (documents,) arrays."""

    length: np.ndarray  # int32, tokens
    trained: np.ndarray  # int32, trained tokens
    content: np.ndarray  # uint64, content hash
    source: np.ndarray  # int32, index into recipe.sources
    row: np.ndarray  # int64, row in the raw source; a row that was split is several documents, one after the other
    task_type: np.ndarray  # uint8, index into task_types.TASK_TYPES
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
    """Apply the recipe's `deduplicate`, `take`, `eval_fraction` and weights, in that order."""
    duplicate_of = find_duplicates(documents) if recipe.deduplicate else np.full(len(documents), -1, np.int64)
    cluster = _clusters(documents, recipe)
    is_near = _drop_near_duplicates(documents, recipe, cluster, duplicate_of)
    rank = selection_order(documents.content, recipe.seed)
    split = np.full(len(documents), UNUSED, dtype=np.int8)
    for index, source in enumerate(recipe.sources):
        mine = np.flatnonzero((documents.source == index) & (duplicate_of < 0))
        split[_take(mine, rank, source.take)] = TRAIN
    _split_eval(documents, recipe, cluster, split)
    copies, notes = assign_copies(documents, recipe, rank, split == TRAIN)
    copies[split == EVAL] = 1
    split[copies == 0] = UNUSED
    return Mixture(split, copies, duplicate_of, is_near, _shares(documents, recipe, split, copies), notes)


def find_duplicates(documents: Documents) -> np.ndarray:
    """(documents,) int64: the first document with the same content, or -1 if it is of the same row."""
    _, first, inverse = np.unique(documents.content, return_index=True, return_inverse=True)
    original = first[inverse]
    own = (documents.row[original] == documents.row) & (documents.source[original] == documents.source)
    return np.where(own, -1, original)


def _clusters(documents: Documents, recipe: Recipe) -> np.ndarray:
    """(documents,) uint64: one key for all documents that may not be torn apart by the eval split."""
    if documents.signature is None or recipe.near_duplicates is None:
        return documents.content
    # Equal contents have equal signatures, so the clusters hold exact duplicates too.
    return documents.content[cluster_ids(documents.signature, recipe.near_duplicates, documents.border)]


def _drop_near_duplicates(
    documents: Documents, recipe: Recipe, cluster: np.ndarray, duplicate_of: np.ndarray
) -> np.ndarray:
    """Mark the near duplicates among those that are left in `duplicate_of`; (documents,) bool: which they are."""
    is_near = np.zeros(len(documents), dtype=bool)
    if recipe.near_duplicates is None or not recipe.near_duplicates.drop:
        return is_near
    left = np.flatnonzero(duplicate_of < 0)
    _, first, inverse = np.unique(cluster[left], return_index=True, return_inverse=True)
    original = left[first[inverse]]
    own = (documents.row[original] == documents.row[left]) & (documents.source[original] == documents.source[left])
    is_near[left[~own]] = True
    duplicate_of[left[~own]] = original[~own]
    return is_near


def selection_order(content: np.ndarray, seed: int) -> np.ndarray:
    """(documents,) uint64 pseudo-random keys from content and seed (splitmix64's finaliser, Steele et al. 2014)."""
    increment = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
    x = content.astype(np.uint64) + np.uint64(increment)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _take(mine: np.ndarray, rank: np.ndarray, take: int | float | None) -> np.ndarray:
    if take is None:
        return mine
    number = take if isinstance(take, int) else round(take * mine.size)
    return mine[np.argsort(rank[mine], kind="stable")[:number]]


def _split_eval(documents: Documents, recipe: Recipe, cluster: np.ndarray, split: np.ndarray) -> None:
    """The documents with the smallest keys of each source go to eval, and so does whatever is in their clusters."""
    rank = selection_order(cluster, recipe.seed)
    held_out = np.zeros(len(documents), dtype=bool)
    seen_earlier = np.zeros(len(documents), dtype=bool)
    if (split == TRAIN).sum() > np.unique(cluster[split == TRAIN]).size:  # a cluster belongs to its first document
        _, first = np.unique(cluster, return_index=True)
        seen_earlier[:] = True
        seen_earlier[first] = False
    for index, source in enumerate(recipe.sources):
        fraction = recipe.eval_fraction if source.eval_fraction is None else source.eval_fraction
        mine = np.flatnonzero((documents.source == index) & (split == TRAIN) & ~seen_earlier)
        number = round(fraction * mine.size)
        held_out[mine[np.argsort(rank[mine], kind="stable")[:number]]] = True
    in_eval = np.isin(cluster, cluster[held_out])
    split[in_eval & (split == TRAIN)] = EVAL


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
