"""Texts that the report shows: sampled documents as the model sees them, and examples of dropped rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.shards import IGNORE_INDEX, Manifest, read_rows, shard_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES_PER_SOURCE = 3
EXAMPLES_PER_REASON = 2
_SHARDS_READ, _ROWS_READ = 16, 64  # at most, of each split: rows are shuffled, so the first ones are a sample
_LONGEST_SAMPLE = 4096  # tokens decoded of a document; the page shows fewer


@dataclass(frozen=True, slots=True)
class Sample:
    """One document, decoded."""

    source: str
    where: str  # file and row
    num_tokens: int
    num_trained: int
    runs: list[tuple[str, bool]]  # text of consecutive tokens, whether they are trained


def sample_documents(
    directory: Path, manifest: Manifest, tokenizer: PreTrainedTokenizerBase, per_source: int = SAMPLES_PER_SOURCE
) -> list[Sample]:
    """Documents of each source from the training shards, in the order of the manifest's sources.

    One per source and packed row at most, as the documents of one row tend to be of one length.
    """
    found: dict[int, list[Sample]] = defaultdict(list)
    names = [source["name"] for source in manifest["sources"]]
    for where, row in _rows(directory, manifest):
        starts = np.concatenate([[0], np.cumsum(row["seq_lengths"])])
        first = {source: number for number, source in reversed(list(enumerate(row["sources"].tolist())))}
        for source, number in first.items():
            if len(found[source]) < per_source:
                ids, labels = (row[k][starts[number] : starts[number + 1]] for k in ("input_ids", "labels"))
                place = f"{where}, document {number}"
                found[source].append(_sample(names[source], place, ids, labels, tokenizer))
        if len(found) == len(names) and all(len(samples) == per_source for samples in found.values()):
            break
    return [sample for source in range(len(names)) for sample in found[source]]


def _rows(directory: Path, manifest: Manifest) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    files = shard_files(directory, manifest, "train")
    for file in files[:: -(-len(files) // _SHARDS_READ) or 1]:
        for number, row in enumerate(islice(read_rows(file), _ROWS_READ)):
            yield f"train/{file.name} row {number}", row


def _sample(source: str, where: str, ids: np.ndarray, labels: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Sample:
    trained = labels != IGNORE_INDEX
    shown = trained[:_LONGEST_SAMPLE]
    borders = [0, *(np.flatnonzero(np.diff(shown)) + 1).tolist(), shown.size]
    runs = [  # decoded run by run, so that no character breaks
        (str(tokenizer.decode(ids[start:end].tolist())), bool(shown[start]))
        for start, end in pairwise(borders)
        if end > start
    ]
    return Sample(source, where, int(ids.size), int(trained.sum()), runs)


def dropped_examples(
    directory: Path, manifest: Manifest, per_reason: int = EXAMPLES_PER_REASON
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """source -> reason -> the first lines of dropped/SOURCE.jsonl with that reason."""
    result: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for source in manifest["sources"]:
        wanted = dict.fromkeys(source["dropped"], per_reason)
        found: dict[str, list[dict[str, Any]]] = {reason: [] for reason in wanted}
        path = directory / "dropped" / f"{source['name']}.jsonl"
        if wanted and path.exists():
            _collect(path, wanted, found)
        result[source["name"]] = found
    return result


def _collect(path: Path, wanted: dict[str, int], found: dict[str, list[dict[str, Any]]]) -> None:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            # A line is parsed only if it may hold what is still missing: there may be millions.
            if any(f'"reason": {json.dumps(reason)}' in line for reason in wanted):
                row = json.loads(line)
                if row["reason"] in wanted:
                    found[row["reason"]].append(row)
                    wanted[row["reason"]] -= 1
                    if not wanted[row["reason"]]:
                        del wanted[row["reason"]]
            if not wanted:
                return
