"""Writes the files of data_prep.provenance: in the plan's folder first, below the shard directory at the end."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.atomic_files import naming, written_atomically
from data_prep.mixture.documents import Documents, Mixture
from data_prep.provenance import FOLDER, NAMES, RECORD, file_of
from data_prep.recipe import Recipe, Source
from data_prep.sources.slices import Slice

_CHUNK = 1 << 22  # documents written at once


def write_records(folder: Path, documents: Documents, mixture: Mixture) -> None:
    """FOLDER/all.npy, of the plan's documents."""
    path = folder / file_of("all")
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "row": documents.row,
        "content": documents.content,
        "copies": mixture.copies,
        "source": documents.source,
        "split": mixture.split,
    }
    header = {"descr": RECORD.descr, "fortran_order": False, "shape": (len(documents),)}
    with written_atomically(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(documents), _CHUNK):
            end = min(start + _CHUNK, len(documents))
            records = np.empty(end - start, dtype=RECORD)
            for name, values in columns.items():
                records[name] = values[start:end]
            file.write(records.tobytes())


def write_uses(folder: Path, split: str, uses: np.ndarray) -> None:
    """FOLDER/SPLIT.npy: the numbers of the documents in the packed rows, in order."""
    with written_atomically(folder / file_of(split)) as file:
        np.save(file, uses)


def publish(plan: Path, output: Path, slices: dict[str, list[Slice]], recipe: Recipe) -> dict[str, Any]:
    """Copy the plan's files below the shard directory; what the manifest says of them."""
    (output / FOLDER).mkdir(exist_ok=True)
    hashes = {file_of(name): _copy(plan / file_of(name), output / file_of(name)) for name in NAMES}
    return {"files": hashes, "inputs": {source.name: _inputs(slices[source.name], source) for source in recipe.sources}}


def _copy(source: Path, target: Path) -> str:
    """Copy a file atomically; its sha256."""
    digest = hashlib.sha256()
    with naming(source), source.open("rb") as read, written_atomically(target) as file:
        shutil.copyfileobj(read, _Hashed(file, digest), 1 << 22)
    return digest.hexdigest()


class _Hashed:
    """A file to write, whose bytes are hashed on the way."""

    def __init__(self, file: Any, digest: Any):
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return int(self._file.write(data))


def _inputs(slices: list[Slice], source: Source) -> list[dict[str, Any]]:
    """The input files in order, with the number of each one's first raw row."""
    found: list[dict[str, Any]] = []
    for slice_ in slices:
        path = slice_.path or source.dataset
        if not found or found[-1]["path"] != path:
            found.append({"path": path, "first_row": slice_.first_row})
    return found
