"""The scores of `packhaul score` in the page of a run: the worst documents of each source, those that changed most."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.scoring.file import read_scores

MOST = 5  # documents of a list
CHARACTERS = 600  # of a stretch of a document that is shown


@dataclass(frozen=True)
class Scores:
    """The scores of one model, of all parts."""

    model: str
    split: str
    rows: dict[int, dict[str, Any]]  # by number of the document in its split; those with a loss


def read_all(files: Iterable[Path], record: dict[str, Any]) -> list[Scores]:
    """The scores of each model in these files, the run's base model first; parts of one file count as one.

    Raises:
        ValueError: a file is none of packhaul score, or of other shards or another split than the others.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {}
    splits: dict[str, Path] = {}
    for file in files:
        head, rows = read_scores(file)
        _check(file, head, record)
        splits.setdefault(str(head["split"]), file)
        model = found.setdefault(str(head["model"]), {})
        model |= {row["document"]: row for row in rows if row.get("loss") is not None}
    if len(splits) > 1:
        raise ValueError(f"--scores: expected scores of one split, found {' and '.join(splits)}: give those of one")
    if len(found) > 2:
        raise ValueError(f"--scores: expected those of one model or two, found {', '.join(found)}: leave out some")
    base = str(record.get("model_name_or_path"))
    split = next(iter(splits), "")
    return [Scores(model, split, found[model]) for model in sorted(found, key=lambda model: model != base)]


def _check(file: Path, head: dict[str, Any], record: dict[str, Any]) -> None:
    if lacks := [name for name in ("model", "split", "manifest_sha256") if name not in head]:
        raise ValueError(f"{file}: expected a file of packhaul score, its first line lacks {', '.join(lacks)}")
    if record.get("manifest_sha256") not in (None, head["manifest_sha256"]):
        raise ValueError(
            f"{file} holds scores of other shards (manifest {str(head['manifest_sha256'])[:12]}, the run's is "
            f"{str(record['manifest_sha256'])[:12]}): score the shards that the run trains on"
        )


def tables(scores: list[Scores], text: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """What the template shows.

    Args:
        scores: one or two; of two, the first is compared with.
        text: the document of a score, in (text, is_trained) stretches; None where it cannot be decoded.

    Returns:
        models, split; sources: name, documents, loss and base (over trained tokens), lists: (title, rows). A row has
        raw_row, packed_row, tokens, trained_tokens, loss, base, change and text.
    """
    last, before = scores[-1], scores[0] if len(scores) > 1 else None
    earlier = before.rows if before else {}
    rows = [_row(row, earlier.get(number)) for number, row in last.rows.items()]
    names = sorted({row["source"] for row in rows})
    sources = [_source(name, [row for row in rows if row["source"] == name], text) for name in names]
    return {"models": [one.model for one in scores], "split": last.split, "sources": sources}


def _row(row: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    base = before["loss"] if before else None
    return {**row, "base": base, "change": None if base is None else row["loss"] - base}


def _source(name: str, rows: list[dict[str, Any]], text: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    compared = [row for row in rows if row["change"] is not None]
    lists = {
        "Highest loss": sorted(rows, key=lambda row: -row["loss"]),
        "Got worse most": sorted((row for row in compared if row["change"] > 0), key=lambda row: -row["change"]),
        "Improved most": sorted((row for row in compared if row["change"] < 0), key=lambda row: row["change"]),
    }
    shown = {title: [{**row, "text": text(row)} for row in found[:MOST]] for title, found in lists.items() if found}
    return {
        "name": name,
        "documents": len(rows),
        "loss": _mean(rows, "loss"),
        "base": _mean(compared, "base"),
        "lists": list(shown.items()),
    }


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    """Over trained tokens."""
    tokens = sum(row["trained_tokens"] for row in rows)
    return sum(row[name] * row["trained_tokens"] for row in rows) / tokens if tokens else None


def decoder(data: Path, split: str, sha256: str | None) -> tuple[Callable[[dict[str, Any]], Any], str | None]:
    """Of a split: what gives a score's text; and why it gives none, where the shards or their tokenizer are gone."""
    from data_prep.packed_rows import PackedRows
    from data_prep.shards import manifest_sha256, read_manifest
    from train.scoring.texts import cut, document_of, load_tokenizer, parts

    try:
        if sha256 not in (None, manifest_sha256(data)):
            raise ValueError(f"{data} holds other shards now")
        rows, tokenizer = PackedRows(data, read_manifest(data), split), load_tokenizer(data)
    except (ValueError, OSError) as error:
        return (lambda score: None), f"Documents are shown without their text: {error}"
    return (lambda score: list(cut(parts(document_of(score, rows), tokenizer), CHARACTERS))), None


def section(files: list[Path], record: dict[str, Any]) -> dict[str, Any] | None:
    """All of it; None without files.

    Raises:
        ValueError: see `read_all`.
    """
    scores = read_all(files, record)
    if not scores:
        return None
    text, problem = decoder(Path(str(record.get("data"))), scores[-1].split, record.get("manifest_sha256"))
    return {**tables(scores, text), "problem": problem}
