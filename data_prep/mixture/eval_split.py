"""The eval split: which documents belong together, and which of these groups are held out.

A group is what may not be torn apart: documents of one `group_by` (by default, of one first question), of the same
tokens, of near duplicates and of one row. Groups are held out as a whole, those with the smallest selection keys first.
One that is larger than its source's eval share stays in training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.conversation import SIBLING
from data_prep.mixture.documents import EVAL, TRAIN, Documents
from data_prep.mixture.equal_keys import argsort_keys, first_of_equal, index_type
from data_prep.mixture.selection_order import selection_order
from data_prep.quality.near_duplicates import cluster_ids, roots, unite
from data_prep.recipe import Recipe, Source

_SORTED = 2  # times as many groups as are wanted are put in order: some may be too large
_SORTED_AT_LEAST = 1000


def eval_fraction(source: Source, recipe: Recipe) -> float:
    """The share of the source's documents that is held out."""
    if source.eval:
        return 0.0
    return recipe.eval_fraction if source.eval_fraction is None else source.eval_fraction


def clusters(documents: Documents, recipe: Recipe, near: np.ndarray | None) -> np.ndarray:
    """(documents,) int32 or int64: the first document of each one's group.

    Args:
        near: (documents,) the first near duplicate of each, if they are looked for.
    """
    found = first_of_equal(documents.tokens)
    same_row = 1 + np.flatnonzero((np.diff(documents.row) == 0) & (np.diff(documents.source) == 0))
    unite(found, same_row - 1, same_row)
    for first in (near, *_groupings(documents, recipe)):
        if first is not None:
            others = np.flatnonzero(first != np.arange(first.size, dtype=first.dtype))
            unite(found, first[others], others)
    return roots(found, np.arange(found.size, dtype=found.dtype))


def _groupings(documents: Documents, recipe: Recipe) -> list[np.ndarray]:
    """The first document of each one's `group_by`, and of similar questions."""
    groupings = [] if documents.group is None else [first_of_equal(documents.group)]
    questions, options = documents.questions, recipe.near_duplicates
    if questions is not None and options is not None:
        nearly = np.arange(len(documents), dtype=np.int64)
        nearly[questions.of] = questions.of[cluster_ids(questions.signatures, options, questions.border)]
        groupings.append(nearly)
    return groupings


@dataclass(frozen=True, slots=True)
class _Share:
    """The groups that one source has documents in."""

    source: Source
    clusters: np.ndarray  # their first documents, ascending
    sizes: np.ndarray  # int32: different documents of the source in each
    wanted: int  # documents to hold out
    room: int  # for a group, documents: a source of which nothing is held out may still share groups with others


def hold_out(
    documents: Documents, recipe: Recipe, cluster: np.ndarray, first: np.ndarray, split: np.ndarray
) -> list[str]:
    """Move whole groups of training documents to eval, in `split`, until each source has its `eval_fraction` there.

    Args:
        cluster: (documents,) the first document of each one's group.
        first: (documents,) the first document of the same content.
        split: (documents,) int8, written to.

    Returns:
        Sentences for the user: groups that are too large to be held out.
    """
    shares = [_share(i, s, documents, recipe, cluster, first, split) for i, s in enumerate(recipe.sources)]
    is_held = np.zeros(cluster.size, dtype=bool)  # by the group's first document
    is_too_large = np.zeros(cluster.size, dtype=bool)
    for share in shares:
        is_too_large[share.clusters[share.sizes > share.room]] = True
    for share in shares:
        _hold_out_of(share, documents, recipe, is_held, is_too_large)
    split[is_held[cluster] & (split == TRAIN)] = EVAL
    return [note for share in shares for note in _notes(share, documents, recipe, is_held)]


def _share(
    index: int,
    source: Source,
    documents: Documents,
    recipe: Recipe,
    cluster: np.ndarray,
    first: np.ndarray,
    split: np.ndarray,
) -> _Share:
    mine = np.flatnonzero((documents.source == index) & (split == TRAIN))
    different = mine[_is_first_time(first[mine], cluster.size)]
    members = np.sort(cluster[different])
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    sizes = np.diff(starts, append=members.size).astype(np.int32)
    wanted = round(eval_fraction(source, recipe) * different.size)
    room = max(1, wanted or round(recipe.eval_fraction * different.size))
    return _Share(source, members[starts], sizes, wanted, room)


def _is_first_time(keys: np.ndarray, size: int) -> np.ndarray:
    """(keys,) bool: no key before it is the same. Keys are below `size`."""
    numbers = np.arange(keys.size, dtype=index_type(size))
    first = np.empty(size, dtype=numbers.dtype)
    first[keys[::-1]] = numbers[::-1]  # of equal keys, the first stays
    return first[keys] == numbers


def _hold_out_of(
    share: _Share, documents: Documents, recipe: Recipe, is_held: np.ndarray, is_too_large: np.ndarray
) -> None:
    """Groups by their selection keys, each that the rest of the share has room for."""
    left = share.wanted - int(share.sizes[is_held[share.clusters]].sum(dtype=np.int64))
    free = np.flatnonzero(~is_held[share.clusters] & ~is_too_large[share.clusters])
    if left <= 0 or not free.size:
        return
    free = free[_smallest_first(documents.tokens[share.clusters[free]], recipe.seed, left)]
    while left > 0 and free.size:
        reached = np.cumsum(share.sizes[free], dtype=np.int64)
        number = int(np.searchsorted(reached, left, side="right"))
        is_held[share.clusters[free[:number]]] = True
        left -= int(reached[number - 1]) if number else 0
        free = free[number:]
        free = free[share.sizes[free] <= left]


def _smallest_first(tokens: np.ndarray, seed: int, wanted: int) -> np.ndarray:
    """Positions by their selection keys: as many as may be needed."""
    rank = selection_order(tokens, seed)
    number = max(_SORTED * wanted, _SORTED_AT_LEAST)
    if number >= rank.size:
        return argsort_keys(rank)
    candidates = np.flatnonzero(rank <= np.partition(rank, number)[number])
    return candidates[argsort_keys(rank[candidates])]


def _notes(share: _Share, documents: Documents, recipe: Recipe, is_held: np.ndarray) -> list[str]:
    """What the share is short of, and why."""
    if not share.wanted:
        return []
    large = np.flatnonzero((share.sizes > share.wanted) & ~is_held[share.clusters])
    notes = []
    if large.size:
        largest = large[np.argmax(share.sizes[large])]
        row = int(documents.row[share.clusters[largest]]) % SIBLING
        name = recipe.sources[documents.source[share.clusters[largest]]].name
        number = int(share.sizes[large].sum(dtype=np.int64))
        notes.append(
            f"source {share.source.name}: {number:,} documents stay in training, as they are in groups larger than its "
            f"eval share of {share.wanted:,}. There are {large.size:,} such groups; the largest has "
            f"{share.sizes[largest]:,}, among them row {row} of {name}. `group_by` says what a group is"
        )
    held = int(share.sizes[is_held[share.clusters]].sum(dtype=np.int64))
    if held < share.wanted * 0.95:
        notes.append(
            f"source {share.source.name}: {held:,} documents are in eval, where its eval_fraction asks for "
            f"{share.wanted:,}: what is left are larger groups"
        )
    return notes
