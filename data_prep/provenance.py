"""Provenance: where each document of a shard directory comes from, and how it is used. Training does not read it.

    documents/all.npy     one RECORD for each document, in the order of the recipe's sources and of their raw rows
    documents/train.npy   (uses,) int32 or int64: for each document in the packed rows, in their order, its number in
                          all.npy; one that is used twice is there twice
    documents/eval.npy    the same for the held-out documents

manifest["documents"] holds the hashes of these files and, for each source, its input files with the number of their
first raw row. A raw row that was dropped before the plan is in dropped/SOURCE.jsonl alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.atomic_files import reading
from data_prep.conversation import SIBLING

FOLDER = "documents"
NAMES = ("all", "train", "eval")
RECORD = np.dtype(
    [
        ("row", "<i8"),  # in the raw source; modulo SIBLING where several conversations are made of one raw row
        ("content", "<u8"),  # hash of the ids and labels of all documents of the conversation
        ("copies", "<i4"),  # how often it is used in its split
        ("source", "<i2"),  # index into manifest["sources"]
        ("split", "i1"),  # index into SPLIT_NAMES
    ]
)
SPLIT_NAMES = ("train", "eval", "unused")
_REMEDY = "prepare the data again, into another folder: the shards will be the same"


def file_of(name: str) -> str:
    """Path of one of NAMES below the shard directory."""
    return f"{FOLDER}/{name}.npy"


@dataclass(frozen=True)
class Provenance:
    """The documents of a shard directory, memory-mapped."""

    directory: Path
    manifest: Mapping[str, Any]
    records: np.ndarray  # (documents,) RECORD
    uses: Mapping[str, np.ndarray]  # by split: (uses,) numbers of documents

    @classmethod
    def open(cls, directory: str | Path, manifest: Mapping[str, Any]) -> Provenance:
        """Map the files.

        Raises:
            ValueError: the directory was prepared before there were such files, or they are damaged.
        """
        directory = Path(directory)
        if "documents" not in manifest:
            raise ValueError(
                f"{directory} does not say which raw rows its documents come from: an older version prepared it; "
                f"{_REMEDY}"
            )
        arrays = {name: _mapped(directory / file_of(name)) for name in NAMES}
        found = cls(directory, manifest, arrays.pop("all"), arrays)
        found._check()
        return found

    def _check(self) -> None:
        """Raises a ValueError where the numbers of documents do not agree with the manifest."""
        if self.records.dtype != RECORD:
            raise ValueError(f"{self.directory / file_of('all')} is damaged (its columns are others): {_REMEDY}")
        for split, uses in self.uses.items():
            expected = self.manifest["splits"][split]["documents"]
            if uses.size != expected:
                raise ValueError(
                    f"{self.directory / file_of(split)}: expected {expected} documents, found {uses.size}: {_REMEDY}"
                )

    def source_index(self, name: str) -> int:
        """A source's number.

        Raises:
            ValueError: there is none of this name; names those that there are.
        """
        names = [source["name"] for source in self.manifest["sources"]]
        if name not in names:
            raise ValueError(f"there is no source {name!r} in {self.directory}; there are {', '.join(names)}")
        return names.index(name)

    def documents_of(self, source: str, row: int) -> np.ndarray:
        """(documents,) numbers of the documents that were made of a raw row; none if it was dropped.

        Raises:
            ValueError: there is no such source or raw row.
        """
        index = self.source_index(source)
        number = self.manifest["sources"][index]["rows"]
        if not 0 <= row < number:
            raise ValueError(f"source {source} has {number:,} raw rows, from 0 to {number - 1:,}; there is no {row:,}")
        first, end = np.searchsorted(self.records["source"], [index, index + 1])
        return first + np.flatnonzero(self.records["row"][first:end] % SIBLING == row)

    def file_of_row(self, index: int, row: int) -> str:
        """The input file, or hub data set, of a raw row of the source with this number."""
        source = self.manifest["sources"][index]["name"]
        files = self.manifest["documents"]["inputs"][source]
        return str([file["path"] for file in files if file["first_row"] <= row][-1])

    def dropped(self, source: str, row: int | None = None) -> Iterator[dict[str, Any]]:
        """Entries of dropped/SOURCE.jsonl: of one raw row, or all."""
        path = self.directory / "dropped" / f"{source}.jsonl"
        wanted = None if row is None else f'"row": {row},'
        with reading(path, _REMEDY), path.open(encoding="utf-8") as lines:
            for line in lines:
                if wanted is None or wanted in line:
                    entry = json.loads(line)
                    if row is None or entry["row"] == row:
                        yield entry


def _mapped(path: Path) -> np.ndarray:
    with reading(path, _REMEDY):
        array: np.ndarray = np.load(path, mmap_mode="r")
    return array
