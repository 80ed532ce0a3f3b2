"""The packed rows of a split by their number, memory-mapped, without `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shards import COLUMNS, IGNORE_INDEX, check_files, shard_files


@dataclass(frozen=True)
class PackedDocument:
    """One document in a packed row."""

    source: int  # index into manifest["sources"]
    input_ids: np.ndarray  # (tokens,) int32
    labels: np.ndarray  # (tokens,) int32, IGNORE_INDEX where not trained

    @property
    def trained_tokens(self) -> int:
        """How many of its tokens are trained."""
        return int((self.labels != IGNORE_INDEX).sum())


class PackedRows:
    """All packed rows of a split, in the order of the shards."""

    def __init__(self, directory: str | Path, manifest: Mapping[str, Any], split: str):
        """Raises a ValueError where a shard is missing, of another size, or no Arrow stream."""
        if problems := check_files(directory, manifest):
            raise ValueError(f"shard directory {directory} is damaged: {'; '.join(problems)}. Prepare it again")
        self.shards = [(shard["file"], shard["rows"]) for shard in manifest["splits"][split]["shards"]]
        self._batches = [batch for file in shard_files(directory, manifest, split) for batch in _batches(file)]
        self._first_row = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        counts = [np.diff(batch.column("seq_lengths").offsets.to_numpy()) for batch in self._batches]
        # (rows + 1,) int64: how many documents all rows before a row hold
        self.first_document = np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *counts]))])
        self.first_document = self.first_document.astype(np.int64)

    def __len__(self) -> int:
        return int(self._first_row[-1])

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """COLUMNS -> (n,) int32 of one packed row."""
        at = int(np.searchsorted(self._first_row, number, side="right")) - 1
        batch, row = self._batches[at], number - int(self._first_row[at])
        return {name: batch.column(name)[row].values.to_numpy() for name in COLUMNS}

    def documents(self, number: int) -> Iterator[PackedDocument]:
        """The documents of one packed row, in order."""
        row, start = self.arrays(number), 0
        for length, source in zip(row["seq_lengths"].tolist(), row["sources"].tolist(), strict=True):
            here = slice(start, start + length)
            yield PackedDocument(source, row["input_ids"][here], row["labels"][here])
            start += length

    def place(self, number: int) -> tuple[str, int]:
        """Shard file, and row in it, of one packed row."""
        for file, rows in self.shards:
            if number < rows:
                return file, number
            number -= rows
        raise IndexError(number)


def _batches(path: Path) -> list[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            return list(stream)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable Arrow stream ({error}): prepare the data again") from None
