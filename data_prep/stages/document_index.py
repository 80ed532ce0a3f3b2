"""The parts' indices as one: what the plan knows of all documents, in a few bytes for each."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from data_prep.atomic_files import reading
from data_prep.mixture.documents import Documents, Questions
from data_prep.mixture.equal_keys import index_type
from data_prep.quality.near_duplicates import Border
from data_prep.recipe import Recipe, group_by
from data_prep.stages.parts import Part, PartCounts

# What the parts hold per document, and what it is held as here.
_COLUMNS = {
    "length": np.int32,
    "trained": np.int32,
    "content": np.uint64,
    "tokens": np.uint64,
    "group": np.uint64,
    "task_type": np.uint8,
}
_SIGNED = ("signature", "border", "border_of")
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a ZIP archive: at its end, the sizes of the name and of more


def load_documents(parts: list[Part], counts: list[PartCounts], recipe: Recipe) -> Documents:
    """All parts' documents in recipe order.

    Raises:
        ValueError: a part is damaged.
    """
    starts = first_documents(counts)
    columns = {name: np.empty(starts[-1], dtype=dtype) for name, dtype in _COLUMNS.items()}
    columns["row"] = np.empty(starts[-1], dtype=_row_type(counts, recipe))
    columns["source"] = np.empty(starts[-1], dtype=np.int16)
    sources = {s.name: i for i, s in enumerate(recipe.sources)}
    for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
        found = read_index(part, columns.keys() - {"source"})
        columns["source"][start:end] = sources[part.slice.source]
        for name, array in found.items():
            with reading(part.file(".npz"), part.remedy):
                columns[name][start:end] = array.reshape(end - start)
    are_grouped = any(group_by(source, recipe) != "conversation" for source in recipe.sources)
    group = columns.pop("group")
    signatures, border, questions = _signatures(parts, starts, recipe) if recipe.near_duplicates else (None, None, None)
    return Documents(
        **columns,
        group=group if are_grouped else None,
        signature=signatures,
        border=border,
        questions=questions,
    )


def _row_type(counts: list[PartCounts], recipe: Recipe) -> np.dtype:
    """Several rows that are made of one have numbers of their own, beyond SIBLING."""
    if any(source.transform or source.answers == "each" for source in recipe.sources):
        return np.dtype(np.int64)
    return np.dtype(index_type(sum(c["rows"] for c in counts)))


def first_documents(counts: list[PartCounts]) -> np.ndarray:
    """(parts + 1,) int64: the number of each part's first document; of all, last."""
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum([c["documents"] for c in counts], out=starts[1:])
    return starts


def _signatures(parts: list[Part], starts: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, Border, Questions | None]:
    """The signatures of texts, and those of questions of the sources that are grouped by them."""
    by_name = {s.name: s for s in recipe.sources}
    all_parts = list(zip(parts, starts[:-1].tolist(), strict=True))
    asked = [(p, start) for p, start in all_parts if group_by(by_name[p.slice.source], recipe) == "question"]
    signatures, border, _ = _signed(all_parts, "")
    if not asked:
        return signatures, border, None
    of_questions, question_border, of = _signed(asked, "question_")
    return signatures, border, Questions(of, of_questions, question_border)


def _signed(parts: list[tuple[Part, int]], prefix: str) -> tuple[np.ndarray, Border, np.ndarray]:
    """Signatures, those at the border, and the number of the document of each."""
    signatures, border, border_of, of, before = [], [], [], [], 0
    for part, start in parts:
        one = read_index(part, {prefix + name for name in _SIGNED})
        signatures.append(one[f"{prefix}signature"])
        border.append(one[f"{prefix}border"])
        border_of.append(one[f"{prefix}border_of"] + before)
        of.append(np.arange(signatures[-1].shape[0]) + start)
        before += signatures[-1].shape[0]
    return np.concatenate(signatures), Border(np.concatenate(border_of), np.concatenate(border)), np.concatenate(of)


def read_counts(parts: Iterable[Part]) -> list[PartCounts]:
    """What the parts' markers hold."""
    return [part.counts() for part in parts]


def read_index(part: Part, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Some arrays of a part's .npz file, read-only. numpy's own reader takes four times as long, which counts for the
    tens of thousands of parts of a large job.

    Raises:
        ValueError: it is damaged.
    """
    path = part.file(".npz")
    with reading(path, part.remedy):
        data = memoryview(path.read_bytes())
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: _array(data, archive.getinfo(f"{name}.npy")) for name in sorted(names)}


def _array(data: memoryview, entry: zipfile.ZipInfo) -> np.ndarray:
    more = sum(_LOCAL_HEADER.unpack_from(data, entry.header_offset))
    start = entry.header_offset + _LOCAL_HEADER.size + more
    content = data[start : start + entry.file_size]
    if entry.compress_type != zipfile.ZIP_STORED or zlib.crc32(content) != entry.CRC:
        raise ValueError(f"{entry.filename} is not what was written")
    shape, dtype, size = _header(bytes(content[: 10 + int.from_bytes(content[8:10], "little")]))
    return np.frombuffer(content, dtype=dtype, offset=size).reshape(shape)


@lru_cache(maxsize=4096)
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and the header's own size, of an array in numpy's format 1.0."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran:
        raise ValueError("an array by columns")
    return shape, dtype, len(header)
