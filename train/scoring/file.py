"""The file of scores: one JSON line a document, written chunk by chunk, and gone on with after a stop.

`FILE.part` grows; it gets its name when it is whole. Its first line says what is scored, and is compared before
anything is added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from train.run.atomic_files import fsync_folder


class ScoreFile:
    """Lines that outlive a stop.

    Args:
        path: of the whole file.
        head: what is scored; its first line.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path, self.head = path, head
        self.part = path.with_name(f"{path.name}.part")

    def done(self, chunk: int) -> int:
        """Documents that have been scored: whole chunks, so that batches, and with them rounding, are those of a run
        without a stop. What was written of another chunk is taken away.

        Raises:
            ValueError: the file holds scores of something else, or is whole already.
        """
        if self.path.exists():
            raise ValueError(f"{self.path} is there already: move it away, or give another --output")
        if not self.part.exists():
            self._append([self.head])
            return 0
        lines = self.part.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if not whole:
            self.part.unlink()
            return self.done(chunk)
        self._compare(json.loads(whole[0]))
        done = (len(whole) - 1) // chunk * chunk
        os.truncate(self.part, sum(map(len, whole[: done + 1])))
        return done

    def _compare(self, found: dict[str, Any]) -> None:
        if found == self.head:
            return
        differ = {name: found.get(name) for name in self.head if found.get(name) != self.head[name]}
        raise ValueError(
            f"{self.part} holds scores of something else (it has {differ}): delete it, or give another --output"
        )

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write a chunk to the disk."""
        self._append(rows)

    def finish(self) -> None:
        """Give the file its name."""
        self.part.rename(self.path)
        fsync_folder(self.path.parent)

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with self.part.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())


def read_scores(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was scored, and the scores of a whole file.

    Raises:
        ValueError: it is no file of scores.
    """
    try:
        head, *rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        return dict(head), rows
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a file of packhaul score: {error}") from None
