"""Figures as JSON lines, appended and flushed to the disk one by one: what is written survives whatever comes next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

OWN_FILE = "PACKHAUL_FIGURES"  # environment: where a stage's process writes what it finds


def own_file() -> Path | None:
    """Where this process writes its figures; None where nobody asked for them."""
    return Path(os.environ[OWN_FILE]) if os.environ.get(OWN_FILE) else None


def append(path: Path, figures: dict[str, Any]) -> None:
    """Add a line, whole or not at all for a reader: one write, then to the disk."""
    line = json.dumps(figures, allow_nan=False, default=str) + "\n"
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, ("\n" * torn + line).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note(figures: dict[str, Any]) -> None:
    """What a stage's process found: to its file, if it has one, and printed."""
    print(json.dumps(figures, default=str), flush=True)
    if path := own_file():
        append(path, figures)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a kill has cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in found if isinstance(entry, dict)]


def merged(path: Path) -> dict[str, Any]:
    """All lines of a stage's own file as one object."""
    return {name: value for entry in read(path) for name, value in entry.items()}
