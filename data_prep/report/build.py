"""report.html and report.json: what preparation made of the data, as a page and as the same numbers for programs.

Nothing in them depends on when or where they were made: the same shards give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.atomic_files import to_json, write_atomically
from data_prep.mixture.documents import EVAL, TRAIN
from data_prep.quality.languages import LANGUAGES
from data_prep.quality.task_types import TASK_TYPES, UNKNOWN
from data_prep.report.length_statistics import (
    density,
    describe,
    histogram,
    histogram_edges,
    length_counts,
    padding,
    shares,
)
from data_prep.report.page import DroppedExamples, render_page
from data_prep.report.samples import Sample, dropped_examples, sample_documents
from data_prep.shards import Manifest, Share, SourceCounts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT_HTML, REPORT_JSON = "report.html", "report.json"
_SPLITS = {"train": TRAIN, "eval": EVAL}
_DENSITY_POINTS = 201


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """What the report knows of each document: (documents,) arrays."""

    length: np.ndarray  # int32, tokens
    trained: np.ndarray  # int32, trained tokens
    source: np.ndarray  # int32, index into manifest["sources"]
    split: np.ndarray  # int8: documents.TRAIN, EVAL or UNUSED
    copies: np.ndarray  # int32: how often it is used in its split
    task_type: np.ndarray  # uint8, index into TASK_TYPES or UNKNOWN
    language: np.ndarray  # uint8, index into LANGUAGES or UNKNOWN


def load_report_data(indices: list[Path], plan: Path) -> ReportData:
    """The documents of a plan.

    Args:
        indices: the parts' .npz files, in the plan's order: length, trained, task_type, language.
        plan: plan.npz: source, split, copies.
    """
    columns: dict[str, list[np.ndarray]] = {key: [] for key in ("length", "trained", "task_type", "language")}
    for path in indices:
        with np.load(path) as index:
            for key, arrays in columns.items():
                arrays.append(index[key])
    with np.load(plan) as planned:
        chosen = {key: planned[key] for key in ("source", "split", "copies")}
    return ReportData(**{key: np.concatenate(arrays) for key, arrays in columns.items()}, **chosen)


def write_report(
    directory: Path, manifest: Manifest, documents: ReportData, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write report.html and report.json next to finished shards.

    Args:
        directory: the shard directory; its shards and dropped/ are complete.
        manifest: what its manifest.json holds, or will hold.
    """
    samples = sample_documents(directory, manifest, tokenizer)
    page, numbers = build_report(manifest, documents, samples, dropped_examples(directory, manifest))
    write_atomically(directory / REPORT_JSON, to_json(numbers))
    write_atomically(directory / REPORT_HTML, page.encode())


def build_report(
    manifest: Manifest, documents: ReportData, samples: list[Sample], dropped: DroppedExamples
) -> tuple[str, dict[str, Any]]:
    """The page and the numbers in it.

    Args:
        samples: from samples.sample_documents.
        dropped: from samples.dropped_examples.
    """
    numbers = report_numbers(manifest, documents)
    return render_page(manifest, numbers, samples, dropped), numbers


def report_numbers(manifest: Manifest, documents: ReportData) -> dict[str, Any]:
    """All figures, JSON-able. Lengths, task types and languages count uses: a document used twice counts twice."""
    everything = np.ones(documents.length.size, dtype=bool)
    sources = []
    for index, (source, share) in enumerate(zip(manifest["sources"], manifest["mixture"], strict=True)):
        figures = _figures(documents, documents.source == index, manifest["seq_len"])
        sources.append({**_source_row(source, share), **figures})
    numbers = {
        "identity": manifest["identity"],
        "seq_len": manifest["seq_len"],
        "sources": sources,
        "overall": _figures(documents, everything, manifest["seq_len"]),
        "packing": {name: _packing(manifest, documents, name) for name in _SPLITS},
    }
    return {**numbers, "notes": [{"text": note} for note in manifest["notes"]] + list(_notes(numbers))}


def _source_row(source: SourceCounts, share: Share) -> dict[str, Any]:
    documents, uses = source["train_documents"], source["train_uses"]
    return {
        "name": source["name"],
        "rows": source["rows"],
        "dropped": source["dropped"],  # rows by reason
        "changed": source["changed"],  # rows that were kept in another form
        "places": source["places"],  # how often their texts were rewritten
        "lost_tokens": source["lost_tokens"],  # by the same reasons and forms, where a row had been tokenized
        "turns": source.get("turns", {}),  # trained, and of these with reasoning or an empty block of it
        "kept": source["kept"],
        "documents": source["documents"],
        "unused": source["unused"],
        "train_documents": documents,
        "train_uses": uses,
        "uses_per_document": round(uses / documents, 3) if documents else None,
        "eval_documents": source["eval_documents"],
        "asked": share["asked"],
        "got": share["got"],
    }


def _figures(documents: ReportData, mine: np.ndarray, seq_len: int) -> dict[str, Any]:
    """Lengths of both splits; histogram, task types and languages of training."""
    result: dict[str, Any] = {}
    for name, code in _SPLITS.items():
        chosen = np.flatnonzero(mine & (documents.split == code))
        copies = documents.copies[chosen]
        length = length_counts(documents.length[chosen], seq_len, copies)
        trained = length_counts(documents.trained[chosen], seq_len, copies)
        result[name] = {"length": describe(length), "trained": describe(trained)}
        if name == "train" and chosen.size:
            result["histogram"] = _histogram(length)
            weights = {"rows": copies, "trained_tokens": copies * documents.trained[chosen].astype(np.int64)}
            source = documents.source[chosen]
            result["task_types"] = _described(documents.task_type[chosen], source, weights, TASK_TYPES)
            result["languages"] = _described(documents.language[chosen], source, weights, LANGUAGES)
    return result


def _described(
    codes: np.ndarray, source: np.ndarray, weights: dict[str, np.ndarray], names: tuple[str, ...]
) -> dict[str, Any]:
    """Shares by each of the weights, and how many documents they were estimated from. The documents of a source that
    were looked at stand for all of its documents."""
    known = codes != UNKNOWN
    source_of_known = source[known]
    result: dict[str, Any] = {}
    for key, weight in weights.items():
        weight_looked_at = np.bincount(source_of_known, weights=weight[known], minlength=1 + source.max())
        weight_in_all = np.bincount(source, weights=weight)
        stands_for = weight_in_all / np.maximum(weight_looked_at, 1e-9)
        result[key] = shares(codes[known], weight[known] * stands_for[source_of_known], names)
    return {**result, "looked_at": int(known.sum())}


def _histogram(counts: np.ndarray) -> dict[str, Any]:
    edges = histogram_edges(counts)
    heights = density(counts, np.linspace(0, edges[-1], _DENSITY_POINTS))
    return {
        # Bin i holds edges[i] < length <= edges[i + 1]; the last one also all that is longer.
        "edges": edges.tolist(),
        "counts": histogram(counts, edges).tolist(),
        # Per token, at equally spaced lengths from 0 to the last edge.
        "density": [float(f"{value:.4g}") for value in heights],
    }


def _packing(manifest: Manifest, documents: ReportData, name: str) -> dict[str, Any]:
    chosen = documents.split == _SPLITS[name]
    counts = length_counts(documents.length[chosen], manifest["seq_len"], documents.copies[chosen])
    rows = manifest["splits"][name]["rows"]
    return {"rows": rows, **padding(counts, rows, manifest["seq_len"])}


def _notes(numbers: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What a person should look at twice: text, and the source if it is about one."""
    for source in numbers["sources"]:
        text = "; ".join(_source_notes(source))
        if text:
            yield {"source": source["name"], "text": f"{text}."}
    packing = numbers["packing"]["train"]
    if packing["rows"] > 20 and packing["efficiency"] < 0.98:
        yield {"text": f"Packing fills only {packing['efficiency']:.1%} of the training rows: try a larger seq_len."}
    kind, share = next(iter(numbers["overall"]["task_types"]["rows"].items()), ("other", 0.0))
    if share > 0.9:
        yield {"text": f"{share:.0%} of the training documents are of one task type, {kind}."}
    if not numbers["overall"]["eval"]["length"]["rows"]:
        yield {"text": "Nothing is held out for evaluation: over-fitting will not show."}


def _source_notes(source: dict[str, Any]) -> Iterator[str]:
    lost, uses = sum(source["dropped"].values()), source["uses_per_document"] or 0
    if source["asked"] is not None and abs(source["asked"] - source["got"]) > 0.02:
        yield f"{source['asked']:.1%} of the mixture was asked for, {source['got']:.1%} came out"
    if lost > 0.1 * source["rows"]:
        yield f"{lost / source['rows']:.0%} of its rows were dropped"
    for how, rows in source["changed"].items():
        if how in source["places"] and rows > 0.1 * source["rows"]:
            yield f"{rows / source['rows']:.0%} of its rows were changed: {how.replace('_', ' ')}"
    if uses > 4:
        yield f"each document is used {uses:.1f} times and may be learnt by heart"
    length, trained = source["train"]["length"], source["train"]["trained"]
    if trained["tokens"] < 0.1 * length["tokens"]:
        yield f"only {trained['tokens'] / length['tokens']:.1%} of its tokens are trained"
