"""How often each document is used: duplicates dropped, `take` applied, the eval split chosen, the mixture weighed out.

Everything works on flat arrays with one entry per document, in the order of the recipe's sources and of their rows.
Choices are made by a hash of (seed, tokens), so they depend neither on the number of workers nor on other sources.
"""

from __future__ import annotations

import numpy as np

from data_prep.mixture.documents import EVAL, EXACT, IN_EVAL, NEAR, TRAIN, UNUSED, Documents, Mixture
from data_prep.mixture.equal_keys import argsort_keys, first_of_equal, index_type
from data_prep.mixture.eval_split import clusters, eval_fraction, hold_out
from data_prep.mixture.selection_order import selection_order
from data_prep.mixture.weighting import amounts, assign_copies
from data_prep.quality.near_duplicates import cluster_ids
from data_prep.recipe import Recipe
from data_prep.shards import Share


def mix(documents: Documents, recipe: Recipe) -> Mixture:
    """Apply the recipe's `take`, `deduplicate`, `eval_fraction` and weights."""
    near = None
    if documents.signature is not None and recipe.near_duplicates is not None:
        near = cluster_ids(documents.signature, recipe.near_duplicates, documents.border)
    rank = selection_order(documents.content, recipe.seed)
    first = first_of_equal(documents.content)
    cluster = clusters(documents, recipe, near)
    split, duplicate_of, repeats = _choose(documents, recipe, _keys(recipe, first, near, cluster), rank)
    notes = hold_out(documents, recipe, cluster, first, split)
    del cluster, first, near
    copies, more = assign_copies(documents, recipe, rank, split == TRAIN)
    copies[split == EVAL] = 1
    split[copies == 0] = UNUSED
    shares = _shares(documents, recipe, split, copies)
    return Mixture(split, copies, duplicate_of, repeats, shares, notes + more + _empty_splits(recipe, shares, notes))


def _keys(recipe: Recipe, first: np.ndarray, near: np.ndarray | None, cluster: np.ndarray) -> list[_Firsts]:
    """By what a document may be out for the sake of another."""
    keys = []
    if recipe.deduplicate:
        keys.append(_Firsts(first, EXACT))
    if near is not None and recipe.near_duplicates is not None and recipe.near_duplicates.drop:
        keys.append(_Firsts(near, NEAR))
    if any(source.eval for source in recipe.sources):
        keys.append(_Firsts(cluster, IN_EVAL))
    return keys


def _choose(
    documents: Documents, recipe: Recipe, keys: list[_Firsts], rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source by source, those of evaluation before the others: what repeats a document that an earlier source uses, or
    an earlier one of the same, is out, and so is what is in one group with a row of evaluation; of the rest, `take`
    chooses. A source of evaluation loses nothing.

    Returns:
        (documents,) split (TRAIN, EVAL or UNUSED), duplicate_of, repeats.
    """
    split = np.full(len(documents), UNUSED, dtype=np.int8)
    duplicate_of = np.full(len(documents), -1, dtype=index_type(len(documents)))
    repeats = np.full(len(documents), EXACT, dtype=np.uint8)
    for index, source in sorted(enumerate(recipe.sources), key=lambda numbered: not numbered[1].eval):
        mine = np.flatnonzero(documents.source == index).astype(duplicate_of.dtype)
        for key in [] if source.eval else keys:
            original = key.of(mine)
            own = (documents.row[original] == documents.row[mine]) & (documents.source[original] == index)
            duplicate_of[mine[~own]] = original[~own]
            repeats[mine[~own]] = key.kind
            mine = mine[own]
        taken = _take(mine, documents, rank, source.take)
        split[taken] = EVAL if source.eval else TRAIN
        for key in keys:
            if source.eval or key.kind != IN_EVAL:
                key.use(taken)
    return split, duplicate_of, repeats


class _Firsts:
    """The first document of each key among those in use."""

    def __init__(self, key: np.ndarray, kind: int):
        """`key`: (documents,) integers below the number of documents; `kind`: of repetition."""
        self.kind = kind
        self._key = key
        self._used = np.full(key.size, -1, dtype=index_type(key.size))
        self._first = np.empty_like(self._used)

    def of(self, mine: np.ndarray) -> np.ndarray:
        """For each of these documents, the one in use with its key, else the first of these; itself, if only rows of
        evaluation count."""
        key = self._key[mine]
        first = self._used[key]
        if self.kind == IN_EVAL:
            return np.where(first < 0, mine, first)
        self._first[key[::-1]] = mine[::-1]  # of equal keys, the first stays
        return np.where(first < 0, self._first[key], first)

    def use(self, taken: np.ndarray) -> None:
        """These documents are used; they come after those that are already."""
        new = taken[self._used[self._key[taken]] < 0]
        self._used[self._key[new[::-1]]] = new[::-1]


def _take(mine: np.ndarray, documents: Documents, rank: np.ndarray, take: int | float | None) -> np.ndarray:
    """The documents of the rows that `take` asks for, in ascending order."""
    if take is None or not mine.size:
        return mine
    # A row's documents have one rank, and stay together.
    by_rank = mine[argsort_keys(rank[mine])]
    rows_so_far = np.cumsum(np.diff(documents.row[by_rank], prepend=-1) != 0)
    num_rows = int(rows_so_far[-1])
    wanted = take if isinstance(take, int) else round(take * num_rows)
    return np.sort(by_rank[rows_so_far <= wanted])


def _empty_splits(recipe: Recipe, shares: list[Share], said: list[str]) -> list[str]:
    """What a table of numbers hides: sources that one of the splits lacks."""
    notes = []
    for source, share in zip(recipe.sources, shares, strict=True):
        fraction = eval_fraction(source, recipe)
        is_said = any(note.startswith(f"source {source.name}: 0 documents are in eval") for note in said)
        if fraction and not share["eval_documents"] and not is_said:
            notes.append(f"source {source.name}: no document is in eval: eval_fraction {fraction:g} of its own is none")
        if not share["train_uses"] and not source.eval:
            notes.append(f"source {source.name}: no document is trained on")
    return notes


def _shares(documents: Documents, recipe: Recipe, split: np.ndarray, copies: np.ndarray) -> list[Share]:
    asked = sum(s.weight or 0.0 for s in recipe.sources)
    members = [np.flatnonzero((documents.source == i) & (split == TRAIN)) for i in range(len(recipe.sources))]
    used = [copies[mine] for mine in members]
    amount = amounts(documents, recipe)
    used_amounts = [int(np.dot(amount[m].astype(np.int64), n)) for m, n in zip(members, used, strict=True)]
    in_eval = np.bincount(documents.source[split == EVAL], minlength=len(recipe.sources))
    shares: list[Share] = []
    for index, source in enumerate(recipe.sources):
        shares.append(
            {
                "source": source.name,
                "asked": None if source.weight is None else round(source.weight / asked, 6),
                "got": round(used_amounts[index] / max(sum(used_amounts), 1), 6),
                "train_documents": int((used[index] > 0).sum()),
                "train_uses": int(used[index].sum()),
                "eval_documents": int(in_eval[index]),
            }
        )
    return shares
