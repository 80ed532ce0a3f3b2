"""One slice's results in the work folder, the marker last; a rerun skips the parts whose marker exists.

SOURCE-00000.arrow      input_ids, labels: one row per document
SOURCE-00000.npz        per document: row (int64, in the raw source), length, trained (int32), content, tokens (uint64),
                        task_type, language (uint8; description.UNKNOWN where not looked up), and if asked for
                        signature (bytes); for some of the documents a second one: border (bytes), border_of (int64,
                        which of the part's documents)
SOURCE-00000.dropped    JSON lines: the rows that cannot be used, with reason and place
SOURCE-00000.json       counts; its existence means complete
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.conversation import BadRow, Conversation
from data_prep.description import Described
from data_prep.labelling import IGNORE_INDEX, TokenizedExample
from data_prep.long_rows import Fitted
from data_prep.near_duplicates import NearDuplicates, border_signatures, conversation_text, signatures
from data_prep.readers import RawRow, Slice
from data_prep.shards import list_column, to_json, write_atomically


@dataclass(frozen=True, slots=True)
class Part:
    """Where one slice's results lie."""

    folder: Path
    slice: Slice

    def file(self, suffix: str) -> Path:
        """The part's file with this suffix."""
        return self.folder / f"{self.slice.source}-{self.slice.index:05d}{suffix}"

    def is_complete(self) -> bool:
        """Whether a former run finished it."""
        return self.file(".json").exists()

    def counts(self) -> dict[str, Any]:
        """rows, kept, documents, tokens, trained_tokens, and by reason: dropped, changed (rows), lost_tokens; the
        encoder; end_token_ids: those that end a trained turn; unseen: mapped columns that no row has."""
        return json.loads(self.file(".json").read_text())


@dataclass
class PartWriter:
    """Collects one slice's documents and drops, then writes them."""

    encoder: str  # which made the ids; each makes the same
    described: Described
    examples: list[TokenizedExample] = field(default_factory=list)
    are_cut: list[bool] = field(default_factory=list)  # whether the document lacks the end of its last turn
    rows: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    task_types: list[int] = field(default_factory=list)
    languages: list[int] = field(default_factory=list)
    near_duplicates: NearDuplicates | None = None  # options of the signatures, if any are wanted
    texts: list[str] = field(default_factory=list)  # one per document, only for the signatures
    dropped: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)  # rows that were kept in another form
    lost_tokens: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    unseen: set[str] = field(default_factory=set)  # columns that the recipe maps and no row has had so far

    def keep(self, raw: RawRow, conversation: Conversation, fitted: Fitted) -> None:
        """Take a row's documents. They share the row's content hash: what is done to one is done to all."""
        content, tokens = hashes(fitted.examples)
        task_type, language = self.described.describe(conversation, content)
        for example, hashed in zip(fitted.examples, tokens, strict=True):
            self.examples.append(example)
            self.are_cut.append(fitted.how == "truncated")
            self.rows.append(raw.number)
            self.contents.append(content)
            self.tokens.append(hashed)
            self.task_types.append(task_type)
            self.languages.append(language)
            if self.near_duplicates:
                self.texts.append(conversation_text(conversation))
        self.kept += 1
        if fitted.how:
            self.changed[fitted.how] += 1
            self.lost_tokens[fitted.how] += fitted.lost_tokens

    def drop(self, raw: RawRow, bad: BadRow, tokens: int = 0) -> None:
        """List a row that is not used; `tokens` where it had been tokenized."""
        value = None if isinstance(raw.value, BadRow) else raw.value
        self.reasons[bad.reason] += 1
        if tokens:
            self.lost_tokens[bad.reason] += tokens
        self.dropped.append(
            {"row": raw.number, "where": raw.where, "reason": bad.reason, "detail": bad.detail, "value": value}
        )

    def write(self, part: Part) -> None:
        """Write the part's files, the marker last."""
        arrays: dict[str, np.ndarray] = {
            "row": np.array(self.rows, dtype=np.int64),
            "length": np.array([e.input_ids.size for e in self.examples], dtype=np.int32),
            "trained": _num_trained(self.examples),
            "content": np.array(self.contents, dtype=np.uint64),
            "tokens": np.array(self.tokens, dtype=np.uint64),
            "task_type": np.array(self.task_types, dtype=np.uint8),
            "language": np.array(self.languages, dtype=np.uint8),
        }
        if self.near_duplicates:
            arrays["signature"] = signatures(self.texts, self.near_duplicates)
            border = border_signatures(self.texts, self.near_duplicates)
            arrays |= {"border": border.signatures, "border_of": border.of}
        part.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(part.file(".arrow"), _arrow(self.examples))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(part.file(".npz"), buffer.getvalue())
        # ASCII: rows may hold lone surrogates. str: hub rows may hold dates.
        lines = [json.dumps(entry, ensure_ascii=True, default=str) + "\n" for entry in self.dropped]
        write_atomically(part.file(".dropped"), "".join(lines).encode())
        write_atomically(part.file(".json"), to_json(self._counts(arrays)))

    def _counts(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            "rows": self.kept + len(self.dropped),
            "kept": self.kept,
            "documents": len(self.examples),
            "tokens": int(arrays["length"].sum()),
            "trained_tokens": int(arrays["trained"].sum()),
            "dropped": dict(sorted(self.reasons.items())),
            "changed": dict(sorted(self.changed.items())),
            "lost_tokens": dict(sorted(self.lost_tokens.items())),
            "encoder": self.encoder,
            "end_token_ids": _end_token_ids(self.examples, self.are_cut),
            "unseen": sorted(self.unseen),
        }


def hashes(examples: list[TokenizedExample]) -> tuple[int, list[int]]:
    """64-bit hashes of a row: of what it trains, ids and labels, and of each example's ids.

    The content hash is not of the raw text: that would differ by flags, thoughts or white space that the rendering
    leaves out, and two rows of the same tokens would not be known as one.
    """
    state, tokens = hashlib.blake2b(digest_size=8), []
    for position, example in enumerate(examples):
        size = example.input_ids.size.to_bytes(4, "little")
        ids = size + example.input_ids.tobytes()
        state.update(ids)
        own = state if position == 0 else hashlib.blake2b(ids, digest_size=8)  # the first one's is on the way
        tokens.append(int.from_bytes(own.digest(), "little"))
        state.update(size + example.labels.tobytes())
    return int.from_bytes(state.digest(), "little"), tokens


def _num_trained(examples: list[TokenizedExample]) -> np.ndarray:
    """(documents,) int32: `num_trained` of each, in one pass."""
    if not examples:
        return np.empty(0, dtype=np.int32)
    starts = np.cumsum([0, *(e.labels.size for e in examples[:-1])])
    is_trained = np.concatenate([e.labels for e in examples]) != IGNORE_INDEX
    return np.add.reduceat(is_trained, starts, dtype=np.int32)


def _arrow(examples: list[TokenizedExample]) -> memoryview:
    import pyarrow as pa

    schema = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if examples:
            columns = [list_column([getattr(e, f.name) for e in examples]) for f in schema]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return memoryview(sink.getvalue())


def _end_token_ids(examples: list[TokenizedExample], are_cut: list[bool]) -> list[int]:
    """The ids that end a trained turn, in order."""
    if not examples:
        return []
    labels = np.concatenate([e.labels for e in examples])
    last = np.cumsum([e.labels.size for e in examples]) - 1
    after = np.append(labels[1:], IGNORE_INDEX)
    after[last] = IGNORE_INDEX
    is_end = (labels != IGNORE_INDEX) & (after == IGNORE_INDEX)
    is_end[last[are_cut]] = False
    return np.unique(labels[is_end]).tolist()
