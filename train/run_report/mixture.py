"""The mixture that a run trains on, as the shards' manifest and data report have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.shards import manifest_sha256, read_manifest
from train.run_report.commands import as_yaml


def mixture(record: dict[str, Any]) -> dict[str, Any]:
    """What the template shows.

    Args:
        record: run.json.

    Returns:
        path; problem: why there is no more, or None; sources: name, rows, dropped, documents, uses, tokens, trained,
        held_out, asked, got (shares; None where not given); splits: (name, rows, tokens, trained tokens, efficiency);
        seq_len; tokenizer; notes; recipe, as YAML; report: the data
        report's path, where there is one.
    """
    path = Path(str(record.get("data")))
    try:
        manifest = read_manifest(path)
        if record.get("manifest_sha256") not in (None, manifest_sha256(path)):
            raise ValueError("other shards lie there now")
    except (OSError, ValueError) as error:
        return {"path": str(path), "problem": str(error)}
    shares = {share["source"]: share for share in manifest["mixture"]}
    report = path / "report.html"
    return {
        "path": str(path),
        "problem": None,
        "sources": [_source(source, shares.get(source["name"], {})) for source in manifest["sources"]],
        "splits": [_split(name, split) for name, split in manifest["splits"].items()],
        "seq_len": manifest["seq_len"],
        "tokenizer": manifest["tokenizer"]["name"],
        "notes": manifest["notes"],
        "recipe": as_yaml(dict(manifest["recipe"])),
        "report": str(report) if report.exists() else None,
    }


def _source(source: Any, share: Any) -> dict[str, Any]:
    return {
        "name": source["name"],
        "rows": source["rows"],
        "dropped": sum(source["dropped"].values()),
        "documents": source["train_documents"],
        "uses": source["train_uses"],
        "tokens": source["tokens"],
        "trained": source["trained_tokens"],
        "held_out": source["eval_documents"],
        "asked": share.get("asked"),
        "got": share.get("got"),
    }


def _split(name: str, split: Any) -> dict[str, Any]:
    kept = ("rows", "documents", "tokens", "trained_tokens", "efficiency")
    return {"name": name, **{key: split[key] for key in kept}}
