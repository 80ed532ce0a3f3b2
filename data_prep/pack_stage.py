"""Stage 3, parallel: gather each shard's documents from the parts and write it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.parts import Part
from data_prep.recipe import Recipe
from data_prep.shards import to_json, write_atomically, write_shard


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to write."""

    split: str
    index: int
    first_row: int
    end_row: int

    @property
    def file(self) -> str:
        """Relative to the shard directory."""
        return f"{self.split}/{self.index:05d}.arrow"

    def marker(self, work: Path) -> Path:
        """Holds the shard's manifest entry; its existence means complete."""
        return work / f"{self.split}-{self.index:05d}.json"

    def is_complete(self, work: Path, output: Path) -> bool:
        """Whether the shard is written."""
        return self.marker(work).exists() and (output / self.file).exists()


def shard_tasks(summary: dict[str, Any], recipe: Recipe) -> list[ShardTask]:
    """The shards of a plan."""
    tasks = []
    for split, counts in summary["splits"].items():
        for index, first in enumerate(range(0, counts["rows"], recipe.rows_per_shard)):
            tasks.append(ShardTask(split, index, first, min(first + recipe.rows_per_shard, counts["rows"])))
    return tasks


def write_task(task: ShardTask, where: tuple[list[Part], Path, Path]) -> None:
    """Write one shard and, after it, its marker.

    Args:
        where: the parts, the plan's folder, the shard directory.
    """
    parts, work, output = where
    arrays = load_plan(work / "plan.npz")
    uses, starts = arrays[f"{task.split}_uses"], arrays[f"{task.split}_starts"]
    rows = [
        _packed_row(uses[starts[row] : starts[row + 1]], arrays, parts) for row in range(task.first_row, task.end_row)
    ]
    entry = {"file": task.file, **write_shard(output / task.file, rows)}
    write_atomically(task.marker(work), to_json(entry))


def _packed_row(documents: np.ndarray, arrays: dict[str, np.ndarray], parts: list[Part]) -> dict[str, np.ndarray]:
    ids, labels = [], []
    for document in documents:
        part = open_part(parts[arrays["part"][document]].file(".arrow"))
        at = arrays["in_part"][document]
        start, end = part.offsets[at], part.offsets[at + 1]
        ids.append(part.input_ids[start:end])
        labels.append(part.labels[start:end])
    return {
        "input_ids": np.concatenate(ids),
        "labels": np.concatenate(labels),
        "seq_lengths": np.array([i.size for i in ids], dtype=np.int32),
        "sources": arrays["source"][documents].astype(np.int32),
    }


@lru_cache(maxsize=1)
def load_plan(path: Path) -> dict[str, np.ndarray]:
    """The plan's arrays, read once per process."""
    with np.load(path) as arrays:
        return dict(arrays)


@dataclass(frozen=True, slots=True)
class _OpenPart:
    input_ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


@lru_cache(maxsize=4096)
def open_part(path: Path) -> _OpenPart:
    """A part's token arrays, memory-mapped: pages are shared by all workers and read when touched."""
    import pyarrow as pa

    batch = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
    ids, labels = batch.column("input_ids"), batch.column("labels")
    return _OpenPart(ids.values.to_numpy(), labels.values.to_numpy(), ids.offsets.to_numpy())
