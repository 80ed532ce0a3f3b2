"""Documents and Mixture: what the plan knows of each document and what it decides, as arrays of one entry each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.quality.near_duplicates import Border
from data_prep.shards import Share

TRAIN, EVAL, UNUSED = 0, 1, 2
# Why a document is out for the sake of another: Mixture.repeats are indices into it.
REPEATS = ("duplicate", "near_duplicate", "in_eval_source")
EXACT, NEAR, IN_EVAL = range(3)


@dataclass(frozen=True, slots=True)
class Questions:
    """Signatures of first questions, of the documents that are grouped by them."""

    of: np.ndarray  # (questions,) int64: which document
    signatures: np.ndarray  # (questions, num_perm) uint8
    border: Border  # `of` counts questions


@dataclass(frozen=True, slots=True)
class Documents:
    """What the plan knows of each document: (documents,) arrays."""

    length: np.ndarray  # int32, tokens
    trained: np.ndarray  # int32, trained tokens
    content: np.ndarray  # uint64, hash of the ids and labels of the row's documents: rows of the same are duplicates
    tokens: np.ndarray  # uint64, hash of the document's ids: the eval split tears no two of the same apart
    source: np.ndarray  # int16, index into recipe.sources
    row: np.ndarray  # int32 or int64, row in the raw source; a row that was split is several documents in succession
    task_type: np.ndarray  # uint8, index into task_types.TASK_TYPES or UNKNOWN
    signature: np.ndarray | None = None  # (documents, num_perm) uint8, if the recipe looks for near duplicates
    border: Border | None = None  # the second signatures of some
    group: np.ndarray | None = None  # uint64, of `group_by`; None: nothing but what is the same is one group
    questions: Questions | None = None  # if near duplicates are looked for and questions make groups

    def __len__(self) -> int:
        return int(self.length.size)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How the documents are used."""

    split: np.ndarray  # (documents,) int8: TRAIN, EVAL or UNUSED
    copies: np.ndarray  # (documents,) int32: how often it is used in its split
    duplicate_of: np.ndarray  # (documents,) int32 or int64: the document it repeats, or is in one group with, or -1
    repeats: np.ndarray  # (documents,) uint8: EXACT, NEAR, or IN_EVAL: in one group with a row of an eval source
    shares: list[Share]  # by source: what was asked for and what came out
    notes: list[str]  # what could not be reached
