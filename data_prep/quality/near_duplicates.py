"""Near duplicates: MinHash signatures of conversations (stage 1) and clusters of similar ones (stage 2).

The similarity of two conversations is the Jaccard index of their sets of shingles: five words in a row, or five
characters for scripts without spaces and for short texts. A signature estimates it in `num_perm` bytes (b-bit MinHash,
Li and Koenig 2010); locality-sensitive hashing finds the pairs worth comparing.

A short text and one a little longer would share nothing, one being taken by characters and one by words. So texts just
long enough for words have a second signature, by characters, which is compared with those of short texts only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data_prep.conversation import Conversation
from data_prep.quality.shingles import mix_bits, shingle_hashes, tokenize

TEXTS_PER_CALL = 512
_SEED = 42
_CHANCE = 1 / 256  # that the bytes of two different minima agree
_RECALL = 0.995  # wanted probability that a pair at the threshold is compared
_NEIGHBOURS = 128  # others of its bucket that a document is compared with, so that no bucket costs its square
_PAIRS_PER_CALL = 1 << 16
# Similar texts have nearly as many shingles: at least the threshold's share. Words are not equally long, so a bit more.
_BORDER_SLACK = 1.1
_LONGEST_WORD = 32  # characters, on average; texts of longer words have no second signature


class NearDuplicates(BaseModel):
    """The recipe's `near_duplicates`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Below one half, texts that only share a template would count as duplicates, and pairs would be missed.
    threshold: Annotated[float, Field(ge=0.5, le=1.0)] = 0.8  # Jaccard similarity from which on two are duplicates
    # Bytes of a signature; the standard error is about 0.4 / sqrt(num_perm).
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128  # bytes of a signature
    shingle: Annotated[int, Field(ge=1, le=50)] = 5  # words, or characters, in a row
    short: Annotated[int, Field(ge=0)] = 50  # texts of fewer words are taken by characters
    drop: bool = True  # keep the first only; false: keep all, but on the same side of the eval split


@dataclass(frozen=True, slots=True)
class Border:
    """Second signatures, by characters, of the texts that are a little too long to be short."""

    of: np.ndarray  # (texts at the border,) int64: which text
    signatures: np.ndarray  # (texts at the border, num_perm) uint8


def conversation_text(conversation: Conversation) -> str:
    """What is compared: all texts but the system prompt, which many conversations share."""
    turns = [m for m in conversation.messages if m.role != "system"]
    calls = (json.dumps([c.name, c.arguments], ensure_ascii=False, sort_keys=True) for m in turns for c in m.tool_calls)
    return "\n".join([*(text for m in turns for text in (m.reasoning, m.content) if text), *calls])


def signatures(texts: list[str], options: NearDuplicates) -> np.ndarray:
    """MinHash signatures: (texts, num_perm) uint8, the low byte of each minimum. Equal in all processes."""
    found = np.zeros((len(texts), options.num_perm), dtype=np.uint8)
    for start in range(0, len(texts), TEXTS_PER_CALL):
        chunk = texts[start : start + TEXTS_PER_CALL]
        found[start : start + len(chunk)] = _signatures(chunk, options)
    return found


def border_signatures(texts: list[str], options: NearDuplicates) -> Border:
    """The second signatures of those texts that need one."""
    below = int(options.short / options.threshold * _BORDER_SLACK) + 1
    of = [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(texts), TEXTS_PER_CALL):
        chunk = texts[start : start + TEXTS_PER_CALL]
        likely = [i for i, text in enumerate(chunk) if options.short <= len(text) <= below * _LONGEST_WORD]
        words = tokenize([chunk[i] for i in likely], keep_punctuation=True).counts
        is_at_border = (options.short <= words) & (words < below)
        of.append(start + np.array(likely, dtype=np.int64)[is_at_border])
    found = np.concatenate(of)
    return Border(found, signatures([texts[i] for i in found], options.model_copy(update={"short": below})))


def _signatures(texts: list[str], options: NearDuplicates) -> np.ndarray:
    from rensa import RMinHash

    tokens = tokenize(texts, keep_punctuation=True, characters_below=options.short)
    hashes, starts = shingle_hashes(tokens, options.shingle)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, starts.astype(np.uint64), options.num_perm, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint8)


def find_near_duplicates(signatures: np.ndarray, options: NearDuplicates, border: Border | None = None) -> np.ndarray:
    """(documents,) int64: the first document of each one's cluster, or -1 for the first itself and for single ones."""
    clusters = cluster_ids(signatures, options, border)
    return np.where(clusters == np.arange(clusters.size), -1, clusters)


def cluster_ids(signatures: np.ndarray, options: NearDuplicates, border: Border | None = None) -> np.ndarray:
    """(documents,) int64: the index of the first document of each one's cluster.

    Clusters are the connected components of the pairs whose estimated similarity reaches the threshold.

    Args:
        signatures: (documents, num_perm), as made by `signatures`.
        border: second signatures of some of the documents, as made by `border_signatures`.
    """
    num_documents = signatures.shape[0]
    border = border or Border(np.zeros(0, dtype=np.int64), signatures[:0])
    # The second signatures stand behind the documents' own: number num_documents + i is that of document border.of[i].
    both = np.concatenate([signatures, border.signatures]).astype(np.uint8, copy=False)
    distinct, first, number_of = _distinct(both)
    is_second = first >= num_documents
    clusters = np.arange(distinct.shape[0])
    unite(clusters, number_of[border.of], number_of[num_documents:])
    for columns in _bands(options.threshold, options.num_perm):
        _join_similar(distinct, columns, options.threshold, clusters, is_second)
    # Distinct signatures are numbered by their first document, so the smallest number is the first document's.
    return first[roots(clusters, number_of[:num_documents])]


def _distinct(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different signatures in order of appearance; the first document of each; each document's signature."""
    _, first, inverse = np.unique(_row_keys(signatures), return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(order.size)
    return signatures[first[order]], first[order], number[inverse]


def _bands(threshold: float, num_perm: int) -> list[slice]:
    """Bands of columns, as wide as `_RECALL` at the threshold allows. A pair is compared where it agrees on a band."""
    agree = threshold + (1 - threshold) * _CHANCE
    width = 1
    for wider in range(2, num_perm + 1):
        if 1 - (1 - agree**wider) ** (num_perm // wider) >= _RECALL:
            width = wider
    return [slice(start, start + width) for start in range(0, num_perm - width + 1, width)]


def _join_similar(
    rows: np.ndarray, columns: slice, threshold: float, clusters: np.ndarray, is_second: np.ndarray
) -> None:
    """Compare the rows that agree in `columns`, and join the clusters of the similar ones; never two second rows.

    Rows sorted by the key of their band lie in buckets of one key. Each is compared with the next ones of its bucket:

        key          3  3  3  5  8  8
        distance 1   0-1  1-2      4-5     `place` is 0, 1, 4
        distance 2   0-2                   `place` is 0
        distance 3   none: done
    """
    keys = _row_keys(rows[:, columns])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    place = np.arange(keys.size)
    for distance in range(1, _NEIGHBOURS + 1):
        num_with_neighbour = np.searchsorted(place, keys.size - distance)
        place = place[:num_with_neighbour]
        is_same_bucket = keys[place] == keys[place + distance]
        place = place[is_same_bucket]
        if not place.size:
            return
        _join(rows, order[place], order[place + distance], threshold, clusters, is_second)
    # A bucket of more rows: each of the others with its first one.
    first_in_bucket = np.searchsorted(keys, keys[place])
    _join(rows, order[first_in_bucket], order[place + _NEIGHBOURS], threshold, clusters, is_second)


def _join(
    rows: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    threshold: float,
    clusters: np.ndarray,
    is_second: np.ndarray,
) -> None:
    is_apart = roots(clusters, left) != roots(clusters, right)
    are_both_second = is_second[left] & is_second[right]
    chosen = is_apart & ~are_both_second
    left, right = left[chosen], right[chosen]
    wanted = rows.shape[1] * (threshold + (1 - threshold) * _CHANCE) - 1e-9
    is_similar = np.zeros(left.size, dtype=bool)
    for start in range(0, left.size, _PAIRS_PER_CALL):
        part = slice(start, start + _PAIRS_PER_CALL)
        num_equal = np.count_nonzero(rows[left[part]] == rows[right[part]], axis=1)
        is_similar[part] = num_equal >= wanted
    unite(clusters, left[is_similar], right[is_similar])


def unite(clusters: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Union-find on arrays: the larger root of a pair points to the smaller one, until all pairs share a root."""
    while left.size:
        left, right = roots(clusters, left), roots(clusters, right)
        apart = left != right
        left, right = left[apart], right[apart]
        np.minimum.at(clusters, np.maximum(left, right), np.minimum(left, right))


def roots(clusters: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The root of each member: the smallest of its cluster."""
    roots = clusters[members]
    while not np.array_equal(above := clusters[roots], roots):
        roots = above
    clusters[members] = roots  # shorter paths for the next time
    return roots


def _row_keys(rows: np.ndarray) -> np.ndarray:
    """(rows,) uint64: a hash of each row of bytes."""
    keys = np.zeros(rows.shape[0], dtype=np.uint64)
    for column in rows.T:
        keys = mix_bits(keys + column + np.uint64(1))
    return keys
