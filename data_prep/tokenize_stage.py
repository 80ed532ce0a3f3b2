"""Stage 1, parallel: slices of a source's rows -> token ids, labels and an index, one part per slice.

A part is four files in the work folder, the marker last; a rerun skips the parts whose marker exists:
    SOURCE-00000.arrow      input_ids, labels: one row per kept document
    SOURCE-00000.npz        row (int64), length, trained (int32), content (uint64): one entry per kept document
    SOURCE-00000.dropped    JSON lines: the rows that cannot be used, with reason and place
    SOURCE-00000.json       counts; its existence means complete
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.chat_templates import load_tokenizer, resolve_chat_template
from data_prep.conversation import BadRow, Conversation
from data_prep.readers import RawRow, Slice, read_slice
from data_prep.recipe import Recipe
from data_prep.rendering import Renderer, TokenizedExample
from data_prep.shards import to_json, write_atomically
from data_prep.sources import to_conversation

ROWS_PER_CALL = 512  # rows rendered and encoded in one call of the tokenizer


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
        """rows, kept, tokens, trained_tokens, dropped (by reason)."""
        return json.loads(self.file(".json").read_text())


def make_renderer(recipe: Recipe) -> Renderer:
    """The recipe's tokenizer and template, checked on a probe conversation."""
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.tokenizer_revision)
    template = resolve_chat_template(recipe.chat_template, tokenizer)
    tokenizer.chat_template = template.text  # what is saved with the shards is what rendered them
    return Renderer(tokenizer, template, recipe.control_tokens)


def tokenize_part(part: Part, recipe: Recipe, renderer: Renderer) -> None:
    """Tokenize one slice and write its part.

    Raises:
        ValueError: a row cannot be used and the recipe says to refuse.
    """
    documents = _Documents()
    rows = read_slice(_source(recipe, part), part.slice)
    while batch := list(islice(rows, ROWS_PER_CALL)):
        for raw, conversation, result in _examples(batch, recipe, part, renderer):
            bad = result if isinstance(result, BadRow) else _too_long(result, recipe)
            if bad is None:
                assert conversation is not None and isinstance(result, TokenizedExample)
                documents.keep(raw, conversation, result)
            else:
                _refuse_if_asked(raw, bad, recipe)
                documents.drop(raw, bad)
    documents.write(part)


def _source(recipe: Recipe, part: Part) -> Any:
    return next(s for s in recipe.sources if s.name == part.slice.source)


def _examples(
    batch: list[RawRow], recipe: Recipe, part: Part, renderer: Renderer
) -> Iterator[tuple[RawRow, Conversation | None, TokenizedExample | BadRow]]:
    separator = "\n\n### Input:\n" if recipe.chat_template == "alpaca" else "\n\n"
    converted: list[Conversation | BadRow] = []
    for raw in batch:
        try:
            converted.append(to_conversation(_source(recipe, part), raw, input_separator=separator))
        except BadRow as bad:
            converted.append(bad)
    rendered = iter(renderer.render([c for c in converted if isinstance(c, Conversation)]))
    for raw, c in zip(batch, converted, strict=True):
        yield (raw, c, next(rendered)) if isinstance(c, Conversation) else (raw, None, c)


def _too_long(example: TokenizedExample | BadRow, recipe: Recipe) -> BadRow | None:
    assert isinstance(example, TokenizedExample)
    if example.input_ids.size <= recipe.seq_len:
        return None
    return BadRow("too_long", f"{example.input_ids.size} tokens; seq_len is {recipe.seq_len}")


def _refuse_if_asked(raw: RawRow, bad: BadRow, recipe: Recipe) -> None:
    key = "too_long" if bad.reason == "too_long" else "bad_rows"
    if getattr(recipe, key) == "refuse":
        raise ValueError(
            f"{raw.where}: {bad.reason}: {bad.detail}. The recipe says `{key}: refuse`; repair the row, or set "
            f"`{key}: {'drop' if key == 'too_long' else 'skip'}` to count it and go on"
        )


class _Documents:
    """What one part collects."""

    def __init__(self) -> None:
        self.examples: list[TokenizedExample] = []
        self.rows: list[int] = []
        self.contents: list[int] = []
        self.dropped: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()

    def keep(self, raw: RawRow, conversation: Conversation, example: TokenizedExample) -> None:
        self.examples.append(example)
        self.rows.append(raw.number)
        self.contents.append(conversation.content_hash())

    def drop(self, raw: RawRow, bad: BadRow) -> None:
        value = None if isinstance(raw.value, BadRow) else raw.value
        self.reasons[bad.reason] += 1
        self.dropped.append(
            {"row": raw.number, "where": raw.where, "reason": bad.reason, "detail": bad.detail, "value": value}
        )

    def write(self, part: Part) -> None:
        lengths = np.array([e.input_ids.size for e in self.examples], dtype=np.int32)
        trained = np.array([e.num_trained for e in self.examples], dtype=np.int32)
        part.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(part.file(".arrow"), self._arrow())
        index = io.BytesIO()
        row, content = np.array(self.rows, dtype=np.int64), np.array(self.contents, dtype=np.uint64)
        np.savez(index, row=row, length=lengths, trained=trained, content=content)
        write_atomically(part.file(".npz"), index.getvalue())
        lines = [
            json.dumps(d, ensure_ascii=True, default=str) + "\n" for d in self.dropped
        ]  # ASCII: rows may hold lone surrogates
        write_atomically(part.file(".dropped"), "".join(lines).encode())
        write_atomically(part.file(".json"), to_json(self._counts(part, lengths, trained)))

    def _counts(self, part: Part, lengths: np.ndarray, trained: np.ndarray) -> dict[str, Any]:
        return {
            "rows": len(self.examples) + len(self.dropped),
            "kept": len(self.examples),
            "tokens": int(lengths.sum()),
            "trained_tokens": int(trained.sum()),
            "dropped": dict(sorted(self.reasons.items())),
        }

    def _arrow(self) -> memoryview:
        import pyarrow as pa

        schema = pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels")])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            if self.examples:
                columns = [_list_array([getattr(e, f.name) for e in self.examples]) for f in schema]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        return memoryview(sink.getvalue())


def _list_array(values: list[np.ndarray]) -> Any:
    import pyarrow as pa

    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([v.size for v in values], out=offsets[1:])
    return pa.ListArray.from_arrays(offsets, np.concatenate(values))
