"""Stage 2, one process: which documents are used, and which row each goes to. Reads only the parts' indices."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.mixing import EVAL, TRAIN, Documents, Mixture, mix
from data_prep.near_duplicates import Border
from data_prep.packing import pack
from data_prep.parts import Part
from data_prep.recipe import Recipe
from data_prep.shards import SPLITS, to_json, write_atomically

_INDEXED = ("length", "trained", "content", "tokens", "row", "task_type")  # what the parts hold per document
_SPLIT_CODES = {"train": TRAIN, "eval": EVAL}


PLACE_COLUMNS = 4  # of the places of a split's documents: number of the part, position in it, source, length


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The packed rows of one split: row r holds document uses[starts[r]:starts[r + 1]]."""

    uses: np.ndarray  # (uses,) int64: document numbers, by row
    starts: np.ndarray  # (rows + 1,) int64


def load_documents(parts: list[Part], recipe: Recipe) -> tuple[Documents, np.ndarray, np.ndarray]:
    """All parts' documents in recipe order; per document its part's number and its row in the raw source."""
    names = {s.name: i for i, s in enumerate(recipe.sources)}
    indexed = (*_INDEXED, *(["signature", "border", "border_of"] if recipe.near_duplicates else []))
    columns: dict[str, list[np.ndarray]] = {k: [] for k in (*indexed, "part", "source")}
    before = 0
    for number, part in enumerate(parts):
        with np.load(part.file(".npz")) as index:
            for key in indexed:
                columns[key].append(index[key] + before if key == "border_of" else index[key])
        before += columns["row"][-1].size
        size = columns["row"][-1].size
        columns["part"].append(np.full(size, number, dtype=np.int32))
        columns["source"].append(np.full(size, names[part.slice.source], dtype=np.int32))
    flat = {key: np.concatenate(arrays) for key, arrays in columns.items()}
    documents = Documents(
        flat["length"],
        flat["trained"],
        flat["content"],
        flat["tokens"],
        flat["source"],
        flat["row"],
        flat["task_type"],
        flat.get("signature"),
        Border(flat["border_of"], flat["border"]) if recipe.near_duplicates else None,
    )
    return documents, flat["part"], flat["row"]


def plan(parts: list[Part], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Make the plan and write it: for the report plan.npz (source, split, copies, by document); for packing
    SPLIT-places.npy ((uses, PLACE_COLUMNS) int32, row after row) and SPLIT-starts.npy ((rows + 1,) int64), of which a
    worker maps what its shard needs; dropped duplicates; plan.json last.

    Raises:
        ValueError: no document is left to train on, or `columns` names one that no row of its source has.
    """
    documents, part_of, row_of = load_documents(parts, recipe)
    _refuse_empty_sources(documents, parts, recipe)
    _refuse_unseen_columns(parts, recipe)
    mixture = mix(documents, recipe)
    if not (mixture.split == TRAIN).any():
        raise ValueError(
            f"no document is left to train on: {_losses(parts)}. The dropped rows lie in {parts[0].folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    position = _position_in_part(part_of)
    splits = {}
    for name in SPLITS:
        split = _pack_split(documents, mixture, recipe, _SPLIT_CODES[name])
        places = np.empty((split.uses.size, PLACE_COLUMNS), dtype=np.int32)
        for column, values in enumerate((part_of, position, documents.source, documents.length)):
            places[:, column] = values[split.uses]
        _save(folder / f"{name}-places.npy", places)
        _save(folder / f"{name}-starts.npy", split.starts)
        splits[name] = _split_counts(split, documents, recipe)
    buffer = io.BytesIO()
    np.savez(buffer, source=documents.source, split=mixture.split, copies=mixture.copies)
    write_atomically(folder / "plan.npz", buffer.getbuffer())
    write_atomically(folder / "duplicates.jsonl", _duplicate_lines(documents, mixture, row_of, recipe))
    summary = {
        "splits": splits,
        "sources": _source_counts(documents, mixture, parts, recipe),
        "mixture": mixture.shares,
        "notes": mixture.notes,
    }
    write_atomically(folder / "plan.json", to_json(summary))
    return summary


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getbuffer())


def _pack_split(documents: Documents, mixture: Mixture, recipe: Recipe, code: int) -> SplitPlan:
    used = np.flatnonzero(mixture.split == code)
    uses = np.repeat(used, mixture.copies[used])
    random = np.random.default_rng([recipe.seed, code])
    uses = random.permutation(uses)  # which of equally long documents go together is by chance
    row_of, count = _pack_stages(uses, documents, recipe, random)
    order = np.argsort(row_of, kind="stable")  # within a row: by chance, as `uses` is
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=count), out=starts[1:])
    return SplitPlan(uses[order], starts)


def _pack_stages(
    uses: np.ndarray, documents: Documents, recipe: Recipe, random: np.random.Generator
) -> tuple[np.ndarray, int]:
    """(uses,) row of each use, and the number of rows. The stages of a curriculum are packed one after the other."""
    stage_of_source = np.array([s.stage for s in recipe.sources])
    stage = stage_of_source[documents.source[uses]]
    row_of, total = np.empty(uses.size, dtype=np.int64), 0
    for number in np.unique(stage):
        mine = np.flatnonzero(stage == number)
        rows, count = pack(documents.length[uses[mine]], recipe.seq_len)
        # Packing makes full rows of long documents first: shuffle the rows.
        row_of[mine] = total + random.permutation(count)[rows]
        total += count
    return row_of, total


def _split_counts(split: SplitPlan, documents: Documents, recipe: Recipe) -> dict[str, Any]:
    rows = split.starts.size - 1
    tokens = int(documents.length[split.uses].sum(dtype=np.int64))
    return {
        "rows": rows,
        "documents": int(split.uses.size),
        "tokens": tokens,
        "trained_tokens": int(documents.trained[split.uses].sum(dtype=np.int64)),
        "efficiency": round(tokens / (rows * recipe.seq_len), 6) if rows else None,
    }


def _position_in_part(part_of: np.ndarray) -> np.ndarray:
    first = np.searchsorted(part_of, part_of, side="left")  # parts come in ascending order
    return (np.arange(part_of.size) - first).astype(np.int32)


def _source_counts(documents: Documents, mixture: Mixture, parts: list[Part], recipe: Recipe) -> list[dict[str, Any]]:
    result = []
    for index, source in enumerate(recipe.sources):
        counts = [p.counts() for p in parts if p.slice.source == source.name]
        dropped, changed, lost_tokens = (_total(counts, key) for key in ("dropped", "changed", "lost_tokens"))
        mine = documents.source == index
        repeated = mine & (mixture.duplicate_of >= 0)
        duplicates = 0
        for reason, those in (("duplicate", ~mixture.is_near), ("near_duplicate", mixture.is_near)):
            if number := int(np.unique(documents.row[repeated & those]).size):
                dropped[reason] = number
                lost_tokens[reason] = int(documents.length[repeated & those].sum(dtype=np.int64))
                duplicates += number
        result.append(
            {
                "name": source.name,
                "rows": sum(c["rows"] for c in counts),
                "dropped": dict(sorted(dropped.items())),  # rows by reason
                "changed": changed,  # rows that were truncated or split to fit
                "lost_tokens": dict(sorted(lost_tokens.items())),
                "kept": sum(c["kept"] for c in counts) - duplicates,
                "documents": int(mine.sum() - repeated.sum()),
                "unused": int((mixture.copies[mine] == 0).sum() - repeated.sum()),  # left out by `take` or `weight`
                "tokens": int((documents.length * mixture.copies)[mine].sum(dtype=np.int64)),
                "trained_tokens": int((documents.trained * mixture.copies)[mine].sum(dtype=np.int64)),
                **{k: mixture.shares[index][k] for k in ("train_documents", "train_uses", "eval_documents")},
            }
        )
    return result


def _total(counts: list[dict[str, Any]], key: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for c in counts:
        total.update(c[key])
    return dict(total)


def _duplicate_lines(documents: Documents, mixture: Mixture, row_of: np.ndarray, recipe: Recipe) -> bytes:
    names = [s.name for s in recipe.sources]
    lines = []
    for i in np.flatnonzero(mixture.duplicate_of >= 0):
        first = mixture.duplicate_of[i]
        of = f"row {row_of[first]} of {names[documents.source[first]]}"
        reason = "near_duplicate" if mixture.is_near[i] else "duplicate"
        line = {
            "source": names[documents.source[i]],
            "row": int(row_of[i]),
            "reason": reason,
            "detail": f"repeats {of}",
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode()


def _refuse_empty_sources(documents: Documents, parts: list[Part], recipe: Recipe) -> None:
    present = set(np.unique(documents.source).tolist())
    for index, source in enumerate(recipe.sources):
        if index not in present:
            mine = [p for p in parts if p.slice.source == source.name]
            raise ValueError(
                f"not one row of source {source.name!r} can be used: {_losses(mine)}. See "
                f"{parts[0].folder.parent}/tokenize-*/{source.name}-*.dropped for each row's reason; check `form` and "
                "`columns`, or take the source out of the recipe"
            )


def _refuse_unseen_columns(parts: list[Part], recipe: Recipe) -> None:
    """A misspelt optional column, such as that of the system prompt, would be left out of every row."""
    for source in recipe.sources:
        unseen = [set(p.counts()["unseen"]) for p in parts if p.slice.source == source.name and source.columns]
        for key, column in source.columns.items():
            if not unseen or any(column not in names for names in unseen):
                continue
            said = f"source {source.name!r}: `columns` gives {column!r} for {key}, but not one of its"
            if source.first is None:
                raise ValueError(f"{said} rows has that column: correct the name, or take `{key}` out of `columns`")
            print(f"{said} `first` {source.first} rows has that column")


def _losses(parts: list[Part]) -> str:
    return "; ".join(f"{p.slice.source}: {c['rows']} rows, dropped {c['dropped']}" for p in parts for c in [p.counts()])
