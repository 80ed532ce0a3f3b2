"""Single rows of a model's embeddings and head, read from its safetensors files without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.run.model_identity import read_header

# The last module's names, as the architectures of transformers have them.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
_HEADS = ("lm_head", "embed_out")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix with one row for each token, in a file."""

    module: str  # the last part of its module's name, such as `lm_head`
    file: Path
    start: int  # its first byte in the file
    rows: int
    width: int
    dtype: str  # as safetensors calls it

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """The rows of these tokens: (len(ids), width) float32. Reads nothing else."""
        size = self.width * _BYTES[self.dtype]
        with self.file.open("rb") as file:
            raw = b"".join(_read_at(file, self.start + i * size, size) for i in ids)
        return _as_float32(raw, self.dtype).reshape(len(ids), self.width)


def find_matrices(folder: Path, settings: dict[str, Any]) -> tuple[Matrix, Matrix]:
    """The embeddings and the head of a saved model; the same one twice where they are tied.

    Args:
        folder: with model.safetensors, or an index of several files.
        settings: of the language model in config.json.

    Raises:
        ValueError: no safetensors, no such matrix, or numbers in another form; says which.
    """
    files = _files_by_tensor(folder)
    embeddings = _matrix(files, _EMBEDDINGS, folder)
    if settings.get("tie_word_embeddings", not any(map(_is_head, files))):
        return embeddings, embeddings
    return embeddings, _matrix(files, _HEADS, folder)


def _is_head(tensor: str) -> bool:
    return _module(tensor) in _HEADS


def _module(tensor: str) -> str:
    """The last part of the module's name; empty where the tensor is no weight of a module."""
    module, _, kind = tensor.rpartition(".")
    return module.rpartition(".")[2] if kind == "weight" else ""


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor. Of a model in several files, only its index is read."""
    single, index = folder / _SINGLE, folder / _INDEX
    try:
        if single.is_file():
            return dict.fromkeys(read_header(single)[0], single)
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {tensor: folder / name for tensor, name in listed.items()}
    except FileNotFoundError:
        raise ValueError(f"{folder} has no safetensors") from None
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{index}: not readable as an index of weights: {error!r}") from None


def _matrix(files: dict[str, Path], modules: Sequence[str], folder: Path) -> Matrix:
    """Of several, that with the shortest name: those of layers that predict further tokens have longer ones."""
    found = sorted((tensor for tensor in files if _module(tensor) in modules), key=len)
    if not found:
        raise ValueError(f"no tensor of {folder} is called like {', '.join(modules)}")
    name, file = found[0], files[found[0]]
    try:
        header, first_byte = read_header(file)
        tensor = header[name]
        rows, width = tensor["shape"]
        start = first_byte + tensor["data_offsets"][0]
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{file}: {name} cannot be read: {error}") from None
    if tensor["dtype"] not in _BYTES:
        raise ValueError(f"{file}: {name} is stored as {tensor['dtype']}")
    return Matrix(module=_module(name), file=file, start=start, rows=rows, width=width, dtype=tensor["dtype"])


def _read_at(file: Any, place: int, size: int) -> bytes:
    file.seek(place)
    found: bytes = file.read(size)
    if len(found) < size:
        raise ValueError(f"{file.name}: it ends before byte {place + size:,}: download or copy the model again")
    return found


def _as_float32(raw: bytes, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float32)
