"""Stage 4, one process: the lists of dropped rows, the report, and the manifest, last."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_prep.atomic_files import naming, reading, sync_directory, written_atomically
from data_prep.rendering.renderer import Renderer
from data_prep.report.build import load_report_data, write_report
from data_prep.shards import (
    FORMAT_VERSION,
    SPLITS,
    TOKENIZER_DIR,
    Manifest,
    ShardFile,
    tokenizer_hashes,
    write_manifest,
)
from data_prep.sources.slices import TEXT_FORMATS
from data_prep.stages.job import REMOVE, Job, digest
from data_prep.stages.output_lock import FOLDER
from data_prep.stages.pack_stage import ShardTask, remove_unlisted, shard_tasks
from data_prep.stages.provenance_files import publish
from data_prep.tokenization.saved_tokenizer import save_exactly

_LIBRARIES = ("packhaul", "tokenizers", "transformers", "pyarrow", "numpy", "rensa")
_WRITTEN_ANEW = (
    "the tokenizer's own files do not give this tokenizer, or are not here: transformers has written it anew"
)


def finish(job: Job, keep_work: bool) -> Manifest:
    """What is left when all shards are there; returns the manifest.

    Raises:
        ValueError: there is no plan, or not all of its shards are packed.
    """
    tasks = shard_tasks(job.planned(), job.recipe)
    missing = [t.file for t in tasks if not t.is_complete(job.plan_dir, job.output)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(tasks)} shards are not packed ({missing[:5]}): run `--stage pack` first"
        )
    for leftover in (*job.output.glob(".*.*.tmp"), *job.output.glob("*/.*.tmp")):  # of writes that were killed
        leftover.unlink()
    remove_unlisted(tasks, job.output)
    write_dropped(job)
    manifest = build_manifest(job, tasks)
    data = load_report_data([part.file(".npz") for part in job.parts], job.plan_dir / "plan.npz")
    write_report(job.output, manifest, data, job.renderer.tokenizer)
    write_manifest(job.output, manifest)
    if not keep_work:
        _remove_work(job.work)
    return manifest


def _remove_work(work: Path) -> None:
    """All but the lock, which goes when it is let go of: a network file system keeps what is open."""
    for path in work.iterdir():
        if path.is_dir() and path.name != FOLDER:
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()


def build_manifest(job: Job, tasks: list[ShardTask]) -> Manifest:
    """Save the tokenizer next to the shards and describe everything."""
    notes = _save_tokenizer(job.renderer, job.output / TOKENIZER_DIR, job.recipe.tokenizer_revision)
    summary = job.planned()
    shards: dict[str, list[ShardFile]] = {split: [] for split in SPLITS}
    for task in tasks:
        marker = task.marker(job.plan_dir)
        with reading(marker, REMOVE):
            shards[task.split].append(json.loads(marker.read_text()))
    return {
        "format_version": FORMAT_VERSION,
        "identity": digest(job.identity),
        "recipe": job.identity["recipe"],
        "made_from": {part: value for part, value in job.identity.items() if part != "recipe"},
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
        "notes": [*summary["notes"], *notes],
        "splits": {split: {**summary["splits"][split], "shards": shards[split]} for split in SPLITS},
        "documents": publish(job.plan_dir, job.output, job.slices, job.recipe),
        "versions": {name: _version(name) for name in _LIBRARIES},
    }


def _version(package: str) -> str | None:
    """The installed version; None where there is none, as of packhaul itself when it runs from its sources."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _end_token_ids(job: Job) -> list[int]:
    """The id that ends an answer, then any other that ends a trained turn, such as that of a tool call."""
    found = {i for part in job.parts for i in part.counts()["end_token_ids"]}
    usual = job.renderer.end_token_ids
    return [*usual, *sorted(found - set(usual))]


def _encodings(job: Job, source: str) -> dict[str, int]:
    """How many text files of the source are in each encoding, stated or detected."""
    slices = [part.slice for part in job.parts if part.slice.source == source and part.slice.format in TEXT_FORMATS]
    files = {(slice_.path, slice_.encoding) for slice_ in slices if slice_.path is not None}
    return dict(sorted(Counter(encoding for _, encoding in files).items()))


def _save_tokenizer(renderer: Renderer, directory: Path, revision: str | None) -> list[str]:
    """Notes about it."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    for leftover in (temporary, directory):
        shutil.rmtree(leftover, ignore_errors=True)
    with naming(temporary):
        try:
            own = save_exactly(renderer.tokenizer, temporary, revision)
        except (OSError, ValueError):
            raise
        except Exception as error:  # of `tokenizers`, which knows no other type
            raise OSError(str(error)) from error
    temporary.rename(directory)
    sync_directory(directory.parent)
    return [] if own else [_WRITTEN_ANEW]


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
