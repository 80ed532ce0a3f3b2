"""Stage 2, one process: decides which documents are used and which row each goes to. Reads only the parts' indices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from data_prep.atomic_files import to_json, write_atomically, written_atomically
from data_prep.conversation import SIBLING
from data_prep.mixture.documents import EVAL, IN_EVAL, REPEATS, TRAIN, Documents, Mixture
from data_prep.mixture.equal_keys import argsort_numbers, index_type
from data_prep.mixture.mixing import mix
from data_prep.mixture.packing import pack
from data_prep.recipe import Recipe
from data_prep.shards import SPLITS, PlannedSource, Share, SplitCounts
from data_prep.stages.document_index import first_documents, load_documents, read_counts
from data_prep.stages.parts import Part, PartCounts
from data_prep.stages.plan_notes import drop_notes, group_notes, unread_notes
from data_prep.stages.provenance_files import write_records, write_uses
from data_prep.stages.refusals import refuse_empty_sources, refuse_nothing_to_train, refuse_unseen_columns

_CHUNK = 1 << 22  # documents looked at at once
_SPLIT_CODES = {"train": TRAIN, "eval": EVAL}
PLACE_COLUMNS = 4  # of the places of a split's documents: number of the part, position in it, source, length


class PlanSummary(TypedDict):
    """What plan.json holds: the manifest's counts, but for those of the shard files."""

    splits: dict[str, SplitCounts]
    sources: list[PlannedSource]
    mixture: list[Share]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """The packed rows of one split: row r holds document uses[starts[r]:starts[r + 1]]."""

    uses: np.ndarray  # (uses,) int32 or int64: document numbers, by row
    starts: np.ndarray  # (rows + 1,) int64


def plan(parts: list[Part], recipe: Recipe, folder: Path) -> PlanSummary:
    """Make the plan and write it: for the report plan.npz (source, split, copies, by document); for packing
    SPLIT-places.npy ((uses, PLACE_COLUMNS) int32, row after row) and SPLIT-starts.npy ((rows + 1,) int64), from which a
    worker maps what its shard needs; dropped duplicates; the files of data_prep.provenance; plan.json last.

    Raises:
        ValueError: no document is left to train on, `columns` or `group_by` name one that no row of its source has, or
            a part is damaged.
    """
    counts = read_counts(parts)
    refuse_empty_sources(parts, counts, recipe)
    refuse_unseen_columns(parts, counts, recipe)
    documents = load_documents(parts, counts, recipe)
    mixture = mix(documents, recipe)
    if not (mixture.split == TRAIN).any():
        refuse_nothing_to_train(parts, counts)
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder, documents, mixture)
    documents = _without_hashes(documents)
    starts = first_documents(counts)
    splits = {}
    for name in SPLITS:
        split = _pack_split(documents, mixture, recipe, _SPLIT_CODES[name])
        _write_places(folder / f"{name}-places.npy", split.uses, starts, documents)
        _save(folder / f"{name}-starts.npy", split.starts)
        write_uses(folder, name, split.uses)
        splits[name] = _split_counts(split, documents, recipe)
        del split
    with written_atomically(folder / "plan.npz") as file:
        np.savez(file, source=documents.source, split=mixture.split, copies=mixture.copies)
    with written_atomically(folder / "duplicates.jsonl") as file:
        file.writelines(_duplicate_lines(documents, mixture, recipe))
    sources = _source_counts(documents, mixture, parts, counts, recipe)
    first_repeated = _first_repeated(documents, mixture, parts, starts, recipe)
    notes = drop_notes(parts, counts, sources, first_repeated)
    summary: PlanSummary = {
        "splits": splits,
        "sources": sources,
        "mixture": mixture.shares,
        "notes": [*mixture.notes, *unread_notes(parts, counts, recipe), *group_notes(parts, counts, recipe), *notes],
    }
    write_atomically(folder / "plan.json", to_json(summary))
    return summary


def _without_hashes(documents: Documents) -> Documents:
    """What packing needs: half the memory."""
    nothing = documents.content[:0].copy()
    return replace(documents, content=nothing, tokens=nothing, group=None, signature=None, border=None, questions=None)


def _write_places(path: Path, uses: np.ndarray, starts: np.ndarray, documents: Documents) -> None:
    """(uses, PLACE_COLUMNS) int32, of the documents used: part, position in it, source, length.

    Args:
        starts: (parts + 1,) each part's first document.
    """
    header = {"descr": "<i4", "fortran_order": False, "shape": (uses.size, PLACE_COLUMNS)}
    with written_atomically(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, uses.size, _CHUNK):
            used = uses[start : start + _CHUNK]
            part = np.searchsorted(starts, used, side="right") - 1
            columns = (part, used - starts[part], documents.source[used], documents.length[used])
            places = np.empty((used.size, PLACE_COLUMNS), dtype=np.int32)
            for column, values in enumerate(columns):
                places[:, column] = values
            file.write(places.data)


def _save(path: Path, array: np.ndarray) -> None:
    with written_atomically(path) as file:
        np.save(file, array)


def _pack_split(documents: Documents, mixture: Mixture, recipe: Recipe, code: int) -> SplitPlan:
    used = np.flatnonzero(mixture.split == code).astype(index_type(len(documents)))
    uses = np.repeat(used, mixture.copies[used])
    del used
    random = np.random.default_rng([recipe.seed, code])
    random.shuffle(uses)  # which of equally long documents go together is by chance
    row_of, count = _pack_stages(uses, documents, recipe, random)
    order = argsort_numbers(row_of, count)  # within a row: by chance, as `uses` is
    starts = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=count), out=starts[1:])
    del row_of
    return SplitPlan(uses[order], starts)


def _pack_stages(
    uses: np.ndarray, documents: Documents, recipe: Recipe, random: np.random.Generator
) -> tuple[np.ndarray, int]:
    """(uses,) row of each use, and the number of rows. The stages of a curriculum are packed one after the other."""
    stages = np.array([s.stage for s in recipe.sources], dtype=np.int16)
    stage = stages[documents.source[uses]]
    row_of, total = np.empty(uses.size, dtype=uses.dtype), 0
    for number in np.unique(stages):
        mine = np.flatnonzero(stage == number).astype(uses.dtype)
        rows, count = pack(documents.length[uses[mine]], recipe.seq_len)
        # Packing makes full rows of long documents first: shuffle the rows.
        row_of[mine] = total + random.permutation(count)[rows]
        total += count
    return row_of, total


def _split_counts(split: SplitPlan, documents: Documents, recipe: Recipe) -> SplitCounts:
    rows = split.starts.size - 1
    tokens = int(documents.length[split.uses].sum(dtype=np.int64))
    return {
        "rows": rows,
        "documents": int(split.uses.size),
        "tokens": tokens,
        "trained_tokens": int(documents.trained[split.uses].sum(dtype=np.int64)),
        "efficiency": round(tokens / (rows * recipe.seq_len), 6) if rows else None,
    }


def _source_counts(
    documents: Documents, mixture: Mixture, parts: list[Part], counts: list[PartCounts], recipe: Recipe
) -> list[PlannedSource]:
    result: list[PlannedSource] = []
    for index, source in enumerate(recipe.sources):
        own = [c for part, c in zip(parts, counts, strict=True) if part.slice.source == source.name]
        dropped = _total([c["dropped"] for c in own])
        changed = _total([c["changed"] for c in own])
        lost_tokens = _total([c["lost_tokens"] for c in own])
        share = mixture.shares[index]
        mine = np.flatnonzero(documents.source == index)
        copies = mixture.copies[mine]
        repeated = mine[mixture.duplicate_of[mine] >= 0]
        duplicates = 0
        for kind, reason in enumerate(REPEATS):
            those = repeated[mixture.repeats[repeated] == kind]
            if those.size:
                dropped[reason] = 1 + int(np.count_nonzero(np.diff(documents.row[those])))
                lost_tokens[reason] = int(documents.length[those].sum(dtype=np.int64))
                duplicates += dropped[reason]
        result.append(
            {
                "name": source.name,
                "rows": sum(c["rows"] for c in own),
                "dropped": dict(sorted(dropped.items())),
                "changed": changed,
                "places": _total([c["places"] for c in own]),
                "lost_tokens": dict(sorted(lost_tokens.items())),
                "turns": _total([c["turns"] for c in own]),
                "kept": sum(c["kept"] for c in own) - duplicates,
                "documents": mine.size - repeated.size,
                "unused": int(np.count_nonzero(copies == 0)) - repeated.size,
                "tokens": int(np.dot(documents.length[mine].astype(np.int64), copies)),
                "trained_tokens": int(np.dot(documents.trained[mine].astype(np.int64), copies)),
                "train_documents": share["train_documents"],
                "train_uses": share["train_uses"],
                "eval_documents": share["eval_documents"],
            }
        )
    return result


def _total(counts: list[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _duplicate_lines(documents: Documents, mixture: Mixture, recipe: Recipe) -> Iterator[bytes]:
    """JSON lines. Names of sources need no escapes."""
    names = [s.name for s in recipe.sources]
    repeated = np.flatnonzero(mixture.duplicate_of >= 0)
    for start in range(0, repeated.size, _CHUNK):
        those = repeated[start : start + _CHUNK]
        columns = (those, mixture.duplicate_of[those])
        sources = [documents.source[column].tolist() for column in columns]
        rows = [(documents.row[column].astype(np.int64) % SIBLING).tolist() for column in columns]
        kinds = mixture.repeats[those].tolist()
        for source, of_source, row, of_row, kind in zip(*sources, *rows, kinds, strict=True):
            yield (
                f'{{"source": "{names[source]}", "row": {row}, "reason": "{REPEATS[kind]}", '
                f'"detail": "{repetition(kind, of_row, names[of_source])}"}}\n'
            ).encode()


def _first_repeated(
    documents: Documents, mixture: Mixture, parts: list[Part], starts: np.ndarray, recipe: Recipe
) -> dict[str, dict[str, str]]:
    """By source and reason: place and detail of the first document that repeats another."""
    found: dict[str, dict[str, str]] = {}
    for index, source in enumerate(recipe.sources):
        for kind, reason in enumerate(REPEATS):
            is_one = (documents.source == index) & (mixture.duplicate_of >= 0) & (mixture.repeats == kind)
            first = int(is_one.argmax())
            if is_one[first]:
                original = mixture.duplicate_of[first]
                part = parts[int(np.searchsorted(starts, first, side="right")) - 1]
                place = f"{part.slice.path or source.dataset}, row {int(documents.row[first]) % SIBLING} of the source"
                name = recipe.sources[documents.source[original]].name
                detail = repetition(kind, int(documents.row[original]) % SIBLING, name)
                found.setdefault(source.name, {})[reason] = f"{place}: {detail}"
    return found


def repetition(kind: int, row: int, source: str) -> str:
    """What a document is out for."""
    what = "is in one group of the eval split with" if kind == IN_EVAL else "repeats"
    return f"{what} row {row} of {source}"


def summary_lines(summary: PlanSummary, seq_len: int) -> Iterator[str]:
    """What a person wants to see of a plan: rows in, rows lost and why, shares, packing."""
    columns = f"{'rows':>10} {'kept':>10} {'unused':>8} {'train':>10} {'uses':>6} {'eval':>8} {'asked':>7} {'got':>7}"
    yield f"{'source':20} {columns}  dropped"
    for source, share in zip(summary["sources"], summary["mixture"], strict=True):
        asked = "-" if share["asked"] is None else f"{share['asked']:.3f}"
        reasons = ", ".join(f"{why} {number:,}" for why, number in source["dropped"].items())
        uses = source["train_uses"] / max(source["train_documents"], 1)
        yield (
            f"{source['name'][:20]:20} {source['rows']:>10,} {source['kept']:>10,} {source['unused']:>8,} "
            f"{source['train_uses']:>10,} {uses:>6.2f} {source['eval_documents']:>8,} {asked:>7} {share['got']:>7.3f}  "
            f"{reasons or 'none'}"
        )
        if source["changed"]:
            yield f"{'':20} kept, but changed: {changed_rows(source)}"
        if turns := reasoning_turns(source.get("turns", {})):
            yield f"{'':20} {turns}"
    yield from summary["notes"]
    for split in SPLITS:
        counts = summary["splits"][split]
        if counts["rows"]:
            yield (
                f"{split}: {counts['documents']:,} documents in {counts['rows']:,} rows of {seq_len:,}, "
                f"{counts['tokens']:,} tokens, {counts['trained_tokens']:,} trained, packing {counts['efficiency']:.4f}"
            )


def changed_rows(source: PlannedSource) -> str:
    """How many of a source's rows were changed, how, and how often."""
    places = source["places"]
    return ", ".join(
        f"{how} {rows:,}{f' ({places[how]:,} places)' if how in places else ''}"
        for how, rows in source["changed"].items()
    )


def reasoning_turns(turns: dict[str, int]) -> str:
    """How many of a source's turns have reasoning, or an empty block of it; nothing where none has either."""
    names = ("with_reasoning", "empty_reasoning_masked", "empty_reasoning_trained")
    found = [f"{turns[name]:,} {name.replace('_', ' ')}" for name in names if turns.get(name)]
    return f"of {turns['trained']:,} trained turns: {', '.join(found)}" if found else ""
