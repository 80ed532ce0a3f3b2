"""The manifest's contents, the lists of dropped rows, and the summary that is printed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_prep.job import Job, digest
from data_prep.pack_stage import ShardTask
from data_prep.readers import TEXT_FORMATS
from data_prep.rendering import Renderer
from data_prep.shards import (
    FORMAT_VERSION,
    SPLITS,
    TOKENIZER_DIR,
    sync_directory,
    tokenizer_hashes,
    written_atomically,
)

_LIBRARIES = ("packhaul", "tokenizers", "transformers", "pyarrow", "numpy", "rensa")


def build_manifest(job: Job, tasks: list[ShardTask]) -> dict[str, Any]:
    """Save the tokenizer beside the shards and describe everything."""
    _save_tokenizer(job.renderer, job.output / TOKENIZER_DIR)
    summary = job.summary()
    assert summary is not None
    shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for task in tasks:
        shards[task.split].append(json.loads(task.marker(job.plan_dir).read_text()))
    return {
        "format_version": FORMAT_VERSION,
        "identity": digest(job.identity),
        "recipe": job.recipe.model_dump(mode="json"),
        "seq_len": job.recipe.seq_len,
        "tokenizer": job.tokenizer,
        "tokenizer_files": tokenizer_hashes(job.output),
        "chat_template": job.renderer.template.origin,
        "chat_template_sha256": job.identity["chat_template_sha256"],
        "encoders": sorted({part.counts()["encoder"] for part in job.parts}),
        "bos_token_id": job.renderer.tokenizer.bos_token_id,
        "end_token_ids": _end_token_ids(job),
        "sources": [{**source, "encodings": _encodings(job, source["name"])} for source in summary["sources"]],
        "recognised": sorted(job.recognised),
        "mixture": summary["mixture"],
        "notes": summary["notes"],
        "splits": {split: {**summary["splits"][split], "shards": shards[split]} for split in SPLITS},
        "versions": {name: version(name) for name in _LIBRARIES},
    }


def _end_token_ids(job: Job) -> list[int]:
    """The id that ends an answer, then any other that ends a trained turn, such as that of a tool call."""
    found = {i for part in job.parts for i in part.counts()["end_token_ids"]}
    usual = job.renderer.end_token_ids
    return [*usual, *sorted(found - set(usual))]


def _encodings(job: Job, source: str) -> dict[str, int]:
    """How many text files of the source are in each encoding, stated or detected."""
    pieces = [part.slice for part in job.parts if part.slice.source == source and part.slice.format in TEXT_FORMATS]
    files = {(piece.path, piece.encoding) for piece in pieces if piece.path is not None}
    return dict(sorted(Counter(encoding for _, encoding in files).items()))


def _save_tokenizer(renderer: Renderer, directory: Path) -> None:
    temporary = directory.with_name(f".{directory.name}.tmp")
    for leftover in (temporary, directory):
        shutil.rmtree(leftover, ignore_errors=True)
    renderer.tokenizer.save_pretrained(temporary)
    temporary.rename(directory)
    sync_directory(directory.parent)


def write_dropped(job: Job) -> None:
    """dropped/SOURCE.jsonl: every row that was not used and why, in the order of the rows' parts, duplicates last."""
    directory = job.output / "dropped"
    directory.mkdir(parents=True, exist_ok=True)
    for source in job.recipe.sources:
        with written_atomically(directory / f"{source.name}.jsonl") as file:
            for part in job.parts:
                if part.slice.source == source.name:
                    with part.file(".dropped").open("rb") as dropped:
                        shutil.copyfileobj(dropped, file)
            with (job.plan_dir / "duplicates.jsonl").open("rb") as duplicates:
                file.writelines(line for line in duplicates if json.loads(line)["source"] == source.name)


def summary_lines(summary: dict[str, Any], seq_len: int) -> Iterator[str]:
    """What a person wants to see of a plan: rows in, rows lost and why, shares, packing."""
    columns = f"{'rows':>10} {'kept':>10} {'unused':>8} {'train':>10} {'uses':>6} {'eval':>8} {'asked':>7} {'got':>7}"
    yield f"{'source':20} {columns}  dropped"
    for source, share in zip(summary["sources"], summary["mixture"], strict=True):
        asked = "-" if share["asked"] is None else f"{share['asked']:.3f}"
        reasons = ", ".join(f"{why} {number:,}" for why, number in {**source["dropped"], **source["changed"]}.items())
        uses = source["train_uses"] / max(source["train_documents"], 1)
        yield (
            f"{source['name'][:20]:20} {source['rows']:>10,} {source['kept']:>10,} {source['unused']:>8,} "
            f"{source['train_uses']:>10,} {uses:>6.2f} {source['eval_documents']:>8,} {asked:>7} {share['got']:>7.3f}  "
            f"{reasons or 'none'}"
        )
    yield from summary["notes"]
    for split in SPLITS:
        counts = summary["splits"][split]
        if counts["rows"]:
            yield (
                f"{split}: {counts['documents']:,} documents in {counts['rows']:,} rows of {seq_len:,}, "
                f"{counts['tokens']:,} tokens, {counts['trained_tokens']:,} trained, packing {counts['efficiency']:.4f}"
            )
