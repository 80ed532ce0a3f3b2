"""Part files: the tokenized result of one slice, in the work folder. A rerun skips the parts whose marker exists.

SOURCE-00000.arrow      input_ids, labels: one row per document
SOURCE-00000.npz        per document: row (int64, in the raw source), length, trained (int32), content, tokens (uint64),
                        group (uint64, see row_groups.py), task_type, language (uint8; task_types.UNKNOWN where not
                        looked up), and if asked for signature (bytes); for some of the documents a second one: border
                        (bytes), border_of (int64, which of the part's documents); the same three of the first
                        questions, as question_..., where they make the groups
SOURCE-00000.dropped    JSON lines: the rows that cannot be used, with reason and place
SOURCE-00000.json       the marker: counts. It is written last; its existence means complete
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from data_prep.arrow_columns import list_column
from data_prep.atomic_files import reading, to_json, write_atomically
from data_prep.conversation import SIBLING, BadRow, Conversation
from data_prep.quality.near_duplicates import NearDuplicates, border_signatures, conversation_text, signatures
from data_prep.quality.pii import Kind, mask, mask_value
from data_prep.recipe import GroupBy, GroupByColumn
from data_prep.rendering.labels import NO_TURNS, TokenizedExample, Turns
from data_prep.rendering.long_rows import Fitted
from data_prep.rendering.rewrites import Rewrite
from data_prep.shards import IGNORE_INDEX
from data_prep.sources.raw_rows import RawRow
from data_prep.sources.slices import Slice
from data_prep.stages.described_rows import Described
from data_prep.stages.row_groups import column_value, first_question, group_of

_SHOWN = 500  # characters of a detail


class PartCounts(TypedDict):
    """What became of one slice's raw rows."""

    rows: int  # raw rows
    kept: int  # raw rows
    documents: int
    tokens: int
    trained_tokens: int
    dropped: dict[str, int]  # raw rows by reason
    changed: dict[str, int]  # raw rows that were truncated, split or rewritten (see rendering/rewrites.py)
    places: dict[str, int]  # how often the texts of these rows were rewritten, by the same names
    lost_tokens: dict[str, int]  # by the same names, where a raw row had been tokenized
    turns: dict[str, int]  # of the kept raw rows (see rendering/labels.py)
    encoder: str  # which made the ids
    end_token_ids: list[int]  # those that end a trained turn
    unseen: list[str]  # columns that the recipe names and no row has
    unread: list[str]  # columns and keys of messages that hold something and that nothing reads
    ungrouped: int  # raw rows without a value in the column that groups
    first_dropped: dict[str, str]  # by reason: place and detail of the first raw row


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

    def counts(self) -> PartCounts:
        """What its marker holds."""
        path = self.file(".json")
        with reading(path, self.remedy):
            counts: PartCounts = json.loads(path.read_text())
        return counts

    @property
    def remedy(self) -> str:
        """What to do where one of its files is damaged."""
        return f"delete {self.file('.json')}, and run the same command again; it makes this part again"


@dataclass
class PartWriter:
    """Collects one slice's documents and drops, then writes them."""

    encoder: str  # which made the ids; each makes the same
    described: Described
    group_by: GroupBy = "conversation"
    examples: list[TokenizedExample] = field(default_factory=list)
    are_cut: list[bool] = field(default_factory=list)  # whether the document lacks the end of its last turn
    rows: list[int] = field(default_factory=list)
    contents: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    task_types: list[int] = field(default_factory=list)
    languages: list[int] = field(default_factory=list)
    masked: frozenset[Kind] = frozenset()  # personal data that is masked in dropped rows, as in the others
    near_duplicates: NearDuplicates | None = None  # options of the signatures, if any are wanted
    texts: list[str] = field(default_factory=list)  # one per document, only for the signatures
    questions: list[str] = field(default_factory=list)  # the same
    groups: list[int] = field(default_factory=list)
    ungrouped: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)  # rows that were kept in another form
    places: Counter[str] = field(default_factory=Counter)  # how often the texts of these rows were rewritten
    lost_tokens: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    unseen: set[str] = field(default_factory=set)  # columns that the recipe names and no row has had so far
    unread: dict[str, None] = field(default_factory=dict)  # names of what was found and not read so far

    def note_columns(self, batch: list[RawRow]) -> None:
        """The columns that these rows have are no longer unseen."""
        if not self.unseen:
            return
        for raw in batch:
            if not isinstance(raw.value, BadRow):
                self.unseen.difference_update(raw.value)

    def keep(
        self,
        raw: RawRow,
        conversation: Conversation,
        fitted: Fitted,
        rewrites: tuple[Rewrite, ...] = (),
        turns: Turns = NO_TURNS,
    ) -> None:
        """Take a row's documents. They share the row's content hash: what is done to one is done to all."""
        content, tokens = hashes(fitted.examples)
        task_type, language = self.described.describe(conversation, content)
        group = group_of(raw, conversation, self.group_by)
        self.ungrouped += isinstance(self.group_by, GroupByColumn) and column_value(raw, self.group_by) is None
        for example, hashed in zip(fitted.examples, tokens, strict=True):
            self.examples.append(example)
            self.are_cut.append(fitted.how == "truncated")
            self.rows.append(raw.number)
            self.contents.append(content)
            self.tokens.append(hashed)
            self.groups.append(hashed if group is None else group)
            self.task_types.append(task_type)
            self.languages.append(language)
            if self.near_duplicates:
                self.texts.append(conversation_text(conversation))
                self.questions.append(first_question(conversation))
        self.kept += 1
        self._count(fitted, rewrites, turns)

    def _count(self, fitted: Fitted, rewrites: tuple[Rewrite, ...], turns: Turns) -> None:
        for name, number in zip(Turns._fields, turns, strict=True):
            self.turns[name] += number
        if fitted.how:
            self.changed[fitted.how] += 1
            self.lost_tokens[fitted.how] += fitted.lost_tokens
        for name, places, lost_tokens in rewrites:
            self.changed[name] += 1
            self.places[name] += places
            if lost_tokens:
                self.lost_tokens[name] += lost_tokens

    def drop(self, raw: RawRow, bad: BadRow, tokens: int = 0) -> None:
        """List a row that is not used; `tokens` where it had been tokenized."""
        value = None if isinstance(raw.value, BadRow) else raw.value
        self.reasons[bad.reason] += 1
        if tokens:
            self.lost_tokens[bad.reason] += tokens
        self.dropped.append(
            {
                "row": raw.number % SIBLING,
                "where": raw.where,
                "reason": bad.reason,
                "detail": mask(bad.detail, self.masked)[0],
                "value": mask_value(value, self.masked)[0],
            }
        )

    def write(self, part: Part) -> None:
        """Write the part's files, the marker last."""
        arrays: dict[str, np.ndarray] = {
            "row": np.array(self.rows, dtype=np.int64),
            "length": np.array([e.input_ids.size for e in self.examples], dtype=np.int32),
            "trained": _num_trained(self.examples),
            "content": np.array(self.contents, dtype=np.uint64),
            "tokens": np.array(self.tokens, dtype=np.uint64),
            "group": np.array(self.groups, dtype=np.uint64),
            "task_type": np.array(self.task_types, dtype=np.uint8),
            "language": np.array(self.languages, dtype=np.uint8),
        }
        if self.near_duplicates:
            arrays |= _signed(self.texts, self.near_duplicates, "")
            if self.group_by == "question":
                arrays |= _signed(self.questions, self.near_duplicates, "question_")
        part.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(part.file(".arrow"), _arrow(self.examples))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(part.file(".npz"), buffer.getvalue())
        # ASCII: rows may hold lone surrogates. str: hub rows may hold dates.
        lines = [json.dumps(entry, ensure_ascii=True, default=str) + "\n" for entry in self.dropped]
        write_atomically(part.file(".dropped"), "".join(lines).encode())
        write_atomically(part.file(".json"), to_json(self._counts(arrays)))

    def _counts(self, arrays: dict[str, np.ndarray]) -> PartCounts:
        return {
            "rows": self.kept + len(self.dropped),
            "kept": self.kept,
            "documents": len(self.examples),
            "tokens": int(arrays["length"].sum()),
            "trained_tokens": int(arrays["trained"].sum()),
            "dropped": dict(sorted(self.reasons.items())),
            "changed": dict(sorted(self.changed.items())),
            "places": dict(sorted(self.places.items())),
            "lost_tokens": dict(sorted(self.lost_tokens.items())),
            "turns": dict(self.turns),
            "encoder": self.encoder,
            "end_token_ids": _end_token_ids(self.examples, self.are_cut),
            "unseen": sorted(self.unseen),
            "unread": list(self.unread),
            "ungrouped": self.ungrouped,
            "first_dropped": self._first_dropped(),
        }

    def _first_dropped(self) -> dict[str, str]:
        backwards = reversed(self.dropped)  # of a reason's entries, the first one stays
        found = {one["reason"]: f"{one['where']}: {one['detail'][:_SHOWN]}" for one in backwards}
        return dict(sorted(found.items()))


def _signed(texts: list[str], options: NearDuplicates, prefix: str) -> dict[str, np.ndarray]:
    border = border_signatures(texts, options)
    found = {"signature": signatures(texts, options), "border": border.signatures, "border_of": border.of}
    return {prefix + name: array for name, array in found.items()}


def hashes(examples: list[TokenizedExample]) -> tuple[int, list[int]]:
    """64-bit hashes of a row: of what it trains, ids and labels, and of each example's ids.

    The content hash is not of the raw text: that would differ by flags, reasoning or white space that the rendering
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
