"""Documents by their text: those in the shards, decoded, and raw rows that were dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from data_prep.packed_rows import PackedRows
from data_prep.provenance import SIBLING, Provenance
from data_prep.shards import SPLITS

_AT_ONCE = 1000  # documents that are decoded together


def rows_with(text: str, provenance: Provenance, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """(source, raw row) of every raw row whose documents, or dropped value, hold a text; each once."""
    seen: set[tuple[str, int]] = set()
    for place in (*_in_shards(text, provenance, tokenizer), *_in_dropped(text, provenance)):
        if place not in seen:
            seen.add(place)
            yield place


def _in_shards(text: str, provenance: Provenance, tokenizer: Any) -> Iterator[tuple[str, int]]:
    names = [source["name"] for source in provenance.manifest["sources"]]
    for split in SPLITS:
        rows = PackedRows(provenance.directory, provenance.manifest, split)
        documents = (document.input_ids for row in range(len(rows)) for document in rows.documents(row))
        numbers = iter(provenance.uses[split].tolist())
        while batch := [ids.tolist() for ids in islice(documents, _AT_ONCE)]:
            for number, decoded in zip(islice(numbers, len(batch)), tokenizer.batch_decode(batch), strict=True):
                if text in decoded:
                    record = provenance.records[number]
                    yield names[record["source"]], int(record["row"]) % SIBLING


def _in_dropped(text: str, provenance: Provenance) -> Iterator[tuple[str, int]]:
    """Of raw rows that could be read: a duplicate is listed without its text, which is that of the row it repeats."""
    escaped = json.dumps(text, ensure_ascii=True)[1:-1]  # as the lines hold it
    for source in provenance.manifest["sources"]:
        for entry in provenance.dropped(source["name"]):
            if escaped in json.dumps(entry.get("value"), ensure_ascii=True):
                yield source["name"], entry["row"]
