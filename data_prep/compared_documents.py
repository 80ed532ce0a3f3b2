"""The documents of two shard directories, compared by their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.provenance import SIBLING, SPLIT_NAMES, Provenance

_TRAIN, _EVAL = (SPLIT_NAMES.index(name) for name in ("train", "eval"))


@dataclass(frozen=True)
class _Contents:
    """The different contents of one side, and how each is used."""

    provenance: Provenance
    keys: np.ndarray  # (contents,) uint64, ascending
    first: np.ndarray  # (contents,) a document of each: one that is used, if any is
    train: np.ndarray  # (contents,) int64: uses in the train split
    eval: np.ndarray  # (contents,) int64

    @classmethod
    def of(cls, provenance: Provenance) -> _Contents:
        records = provenance.records
        content, copies = np.array(records["content"]), records["copies"].astype(np.int64)
        order = np.lexsort((copies == 0, content))
        starts = np.flatnonzero(np.diff(content[order], prepend=content[order[:1]] + np.uint64(1)))
        uses = [np.where(records["split"] == code, copies, 0)[order] for code in (_TRAIN, _EVAL)]
        train, held_out = (np.add.reduceat(one, starts) for one in uses)
        return cls(provenance, content[order][starts], order[starts], train, held_out)

    def of_keys(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(keys,) uses in the train split and in the eval split; 0 where there is no such content."""
        at = np.minimum(np.searchsorted(self.keys, keys), self.keys.size - 1)
        is_there = self.keys[at] == keys
        return np.where(is_there, self.train[at], 0), np.where(is_there, self.eval[at], 0)

    def name(self, key: np.uint64) -> str:
        """Such as faq:17."""
        record = self.provenance.records[self.first[np.searchsorted(self.keys, key)]]
        source = self.provenance.manifest["sources"][record["source"]]["name"]
        return f"{source}:{int(record['row']) % SIBLING}"


def compare_documents(a: Provenance, b: Provenance, examples: int) -> dict[str, Any]:
    """How many different contents are used on one side only, in another split, or another number of times.

    Args:
        examples: raw rows to name of each kind.
    """
    first, second = _Contents.of(a), _Contents.of(b)
    keys = np.union1d(first.keys, second.keys)
    (train_a, eval_a), (train_b, eval_b) = first.of_keys(keys), second.of_keys(keys)
    in_a, in_b = (train_a + eval_a) > 0, (train_b + eval_b) > 0
    both = in_a & in_b
    to_eval = both & (eval_a == 0) & (train_b == 0)
    to_train = both & (train_a == 0) & (eval_b == 0)
    other_uses = both & ~to_eval & ~to_train & ((train_a != train_b) | (eval_a != eval_b))
    kinds = {
        "used in A only": (in_a & ~in_b, first),
        "used in B only": (in_b & ~in_a, second),
        "train in A, eval in B": (to_eval, first),
        "eval in A, train in B": (to_train, first),
        "used another number of times": (other_uses, first),
    }
    found = [_kind(name, keys[mask], side, examples) for name, (mask, side) in kinds.items()]
    differ = to_eval | to_train | other_uses
    return {"differ": found, "same": int((both & ~differ).sum()), "note": _note(a, b)}


def _kind(name: str, keys: np.ndarray, side: _Contents, examples: int) -> dict[str, Any]:
    """Examples by source and row: keys are hashes, so any of them are as good."""
    return {"kind": name, "documents": int(keys.size), "examples": [side.name(key) for key in keys[:examples]]}


def _note(a: Provenance, b: Provenance) -> str | None:
    """What makes equal texts different contents."""
    if a.manifest["tokenizer"]["vocab_sha256"] != b.manifest["tokenizer"]["vocab_sha256"]:
        return "the tokenizers have other vocabularies, so no content can be the same but by chance"
    if a.manifest["chat_template_sha256"] != b.manifest["chat_template_sha256"]:
        return "the chat templates differ, so the same texts are other contents where the templates print other tokens"
    return None
