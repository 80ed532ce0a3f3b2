"""Real data as plain texts: one per row, all its columns joined."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON, JSONL or CSV file."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def texts(path: Path) -> list[str]:
    """What a row says: question or instruction, input, and answer."""
    columns = ("instruction", "input", "output", "question", "answer", "Q", "A")
    return ["\n".join(row[c] for c in columns if row.get(c)) for row in rows(path)]
