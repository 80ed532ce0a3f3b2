"""Stage 3, parallel: writes each shard, with the documents that the plan puts into it, from the parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.arrow_columns import int32_view
from data_prep.atomic_files import reading, to_json, write_atomically
from data_prep.recipe import Recipe
from data_prep.shards import SPLITS, ShardFile, write_shard
from data_prep.stages.parts import Part
from data_prep.stages.plan_stage import PLACE_COLUMNS, PlanSummary

_PART, _POSITION, _SOURCE, _LENGTH = range(PLACE_COLUMNS)
_TOKENS_PER_GROUP = 1 << 24  # gathered at once: 128 MiB of ids and labels, and one row


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


def shard_tasks(summary: PlanSummary, recipe: Recipe) -> list[ShardTask]:
    """The shards of a plan."""
    tasks = []
    for split, counts in summary["splits"].items():
        for index, first in enumerate(range(0, counts["rows"], recipe.rows_per_shard)):
            tasks.append(ShardTask(split, index, first, min(first + recipe.rows_per_shard, counts["rows"])))
    return tasks


def drop_other_markers(work: Path) -> None:
    """Other plans in the same output directory write the same files: from now on their markers would lie.

    Args:
        work: this plan's folder, next to those of the others.
    """
    for split in SPLITS:
        for marker in work.parent.glob(f"plan-*/{split}-[0-9]*.json"):
            if marker.parent != work:
                marker.unlink(missing_ok=True)  # another task of the job array may have been first


def remove_unlisted(tasks: list[ShardTask], output: Path) -> None:
    """Shards that a plan given up has left, and this one has not written over."""
    listed = {output / task.file for task in tasks}
    for split in SPLITS:
        for path in (output / split).glob("[0-9]*.arrow"):
            if path not in listed:
                path.unlink()


def write_task(task: ShardTask, where: tuple[list[Part], Path, Path]) -> None:
    """Write one shard and, after it, its marker.

    Args:
        where: the parts, the plan's folder, the shard directory.
    """
    parts, work, output = where
    starts = _mapped(work / f"{task.split}-starts.npy")[task.first_row : task.end_row + 1]
    places = _mapped(work / f"{task.split}-places.npy")[starts[0] : starts[-1]]
    rows = _packed_rows(np.array(places), np.array(starts) - starts[0], parts)
    entry: ShardFile = {"file": task.file, **write_shard(output / task.file, rows)}
    write_atomically(task.marker(work), to_json(entry))


def _mapped(path: Path) -> np.ndarray:
    with reading(path, "delete plan.json next to it, and run the same command again"):
        array: np.ndarray = np.load(path, mmap_mode="r")
    return array


def _packed_rows(places: np.ndarray, starts: np.ndarray, parts: list[Part]) -> Iterator[dict[str, np.ndarray]]:
    """The rows in order. Each part is opened once for a group of rows, and let go of: memory does not grow with them.

    Args:
        places: (documents, PLACE_COLUMNS) of the rows' documents.
        starts: (rows + 1,) each row's first document.
    """
    tokens = np.concatenate([[0], np.cumsum(places[:, _LENGTH], dtype=np.int64)])
    group_of_row = tokens[starts[:-1]] // _TOKENS_PER_GROUP
    for rows in np.split(np.arange(group_of_row.size), np.flatnonzero(np.diff(group_of_row)) + 1):
        first = starts[rows[0]]
        ids, labels = _gather(places[first : starts[rows[-1] + 1]], parts)
        for row in rows:
            documents = slice(starts[row], starts[row + 1])
            here = slice(tokens[starts[row]] - tokens[first], tokens[starts[row + 1]] - tokens[first])
            lengths, sources = places[documents, _LENGTH], places[documents, _SOURCE]
            yield {"input_ids": ids[here], "labels": labels[here], "seq_lengths": lengths, "sources": sources}


def _gather(places: np.ndarray, parts: list[Part]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) int32 ids and labels of the documents, one after the other."""
    ends = np.cumsum(places[:, _LENGTH], dtype=np.int64)
    ids, labels = np.empty(ends[-1], dtype=np.int32), np.empty(ends[-1], dtype=np.int32)
    order = np.lexsort((places[:, _POSITION], places[:, _PART]))
    for documents in np.split(order, np.flatnonzero(np.diff(places[order, _PART])) + 1):
        part_ids, part_labels, offsets = _open_part(parts[places[documents[0], _PART]])
        lengths, to_ends = places[documents, _LENGTH], ends[documents]
        starts = offsets[places[documents, _POSITION]].tolist()  # ints: several times as fast to slice with
        for start, end, length in zip(starts, to_ends.tolist(), lengths.tolist(), strict=True):
            own, here = slice(start, start + length), slice(end - length, end)
            ids[here], labels[here] = part_ids[own], part_labels[own]
    return ids, labels


def _open_part(part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A part's ids and labels, and each document's first token in them; memory-mapped until they are let go of."""
    import pyarrow as pa

    path = part.file(".arrow")
    with reading(path, part.remedy):
        batch = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
    ids, labels = batch.column("input_ids"), batch.column("labels")
    return int32_view(ids.values), int32_view(labels.values), int32_view(ids.offsets)
