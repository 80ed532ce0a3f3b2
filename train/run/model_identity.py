"""What a model is by its content: digests of its configuration and its weights, and the hub's commit.

A sample of the weights is read, never all of them: every tensor's name, dtype and shape, and of its bytes blocks that
are spread evenly up to its last. So training, merging, quantising, another seed or another architecture is
seen; that the files were moved, copied or split otherwise is not. What lies between the sampled blocks of a large
tensor may change unseen, such as a few rows of an embedding. Standard library and xxhash only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

QUANTISATION = ("bnb_4bit_quant_type", "use_bnb_nested_quant")  # options that decide what 4-bit weights stand for
BLOCK = 4096  # bytes read at one place
PLACES = 2**13  # in all tensors together, or one in each: a network's answer takes a millisecond
# Keys of config.json that say where a model was saved and by what, or how it is run, and not what it is.
_PASSING = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype", "_attn_implementation")
_SINGLE = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class _Region:
    """The bytes of one tensor, or of a file that is not safetensors."""

    name: str  # with dtype and shape
    file: Path
    start: int
    size: int  # bytes


def model_digests(model: str, revision: str | None = None) -> dict[str, str] | None:
    """What identifies the model in a folder or, where it is in the hub's cache, of an id on the hub.

    Returns:
        `config` and `weights`: hexadecimal digests; `commit`: the hub's, of an id. None: it is not on this machine.

    Raises:
        ValueError: a weights file cannot be read.
    """
    if (here := _here(model, revision)) is None:
        return None
    folder, files = here
    commit = {} if Path(model).is_dir() else {"commit": folder.name}
    return {"config": _config_digest(folder / "config.json"), "weights": _weights_digest(files), **commit}


def file_digests(model: str, revision: str | None = None) -> dict[str, str] | None:
    """Of the same model, and read as sparingly, a digest of its configuration and of each weights file by its name.

    None: it is not on this machine.

    Raises:
        ValueError: a weights file cannot be read.
    """
    if (here := _here(model, revision)) is None:
        return None
    folder, files = here
    regions = {file: _sorted_regions([file]) for file in files}
    places = _places(sum(map(len, regions.values())))
    weights = {file.name: _digest(found, places) for file, found in regions.items()}
    return {"config.json": _config_digest(folder / "config.json"), **weights}


def _here(model: str, revision: str | None) -> tuple[Path, list[Path]] | None:
    """The model's folder and its weights files; None where it is not on this machine."""
    folder = model_folder(model, revision)
    files = weight_files(folder) if folder else None
    return (folder, files) if folder and files else None


def difference(before: dict[str, str] | None, now: dict[str, str] | None) -> str | None:
    """In words, how two models differ by their digests; None if they are the same, or one is not known."""
    for part, words in (("weights", "other weights"), ("config", "another configuration")):
        then, here = (before or {}).get(part), (now or {}).get(part)
        if then and here and then != here:
            return f"{words} ({part} {then[:12]} then, {here[:12]} now)"
    return None


def model_folder(model: str, revision: str | None = None) -> Path | None:
    """The model's folder, or its snapshot in the hub's cache; None if neither is here. Never downloads."""
    if Path(model).is_dir():
        return Path(model) if (Path(model) / "config.json").is_file() else None
    if model.count("/") > 1 or model.startswith((".", "/", "~", "$")):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def weight_files(folder: Path) -> list[Path] | None:
    """The files that transformers would load, in order; None if there are none, or one is not here."""
    for single in _SINGLE:
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if index.is_file():
            names = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()
            files = [folder / name for name in sorted(set(names))]
            return files if all(file.is_file() for file in files) else None
    return None


def _config_digest(path: Path) -> str:
    config = {k: v for k, v in json.loads(path.read_text(encoding="utf-8")).items() if k not in _PASSING}
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _weights_digest(files: list[Path]) -> str:
    """Over all tensors by name, in whichever file each lies."""
    regions = _sorted_regions(files)
    return _digest(regions, _places(len(regions)))


def _sorted_regions(files: list[Path]) -> list[_Region]:
    return sorted((region for file in files for region in _regions(file)), key=lambda region: region.name)


def _places(regions: int) -> int:
    """How many blocks of each tensor are read, of a model with that many."""
    return max(1, min(64, PLACES // max(regions, 1)))


def _digest(regions: list[_Region], places: int) -> str:
    state = xxhash.xxh3_128()
    handles = {file: file.open("rb") for file in {region.file for region in regions}}
    try:
        for region in regions:
            state.update(f"{region.name} {region.size}\n".encode())
            for block in _blocks(region, handles[region.file], places):
                state.update(block)
    finally:
        for handle in handles.values():
            handle.close()
    return state.hexdigest()


def _blocks(region: _Region, file: Any, places: int) -> Iterator[bytes]:
    """All bytes of a small tensor; of a large one `places` blocks, evenly spread up to the last."""
    if region.size <= places * BLOCK:
        file.seek(region.start)
        yield file.read(region.size)
        return
    for place in range(places):
        file.seek(region.start + (region.size - BLOCK) * (place + 1) // places)
        yield file.read(BLOCK)


def _regions(path: Path) -> Iterator[_Region]:
    """Of a safetensors file its tensors; of another one, its bytes, which no name divides."""
    if path.suffix != ".safetensors":
        yield _Region(path.name, path, 0, path.stat().st_size)
        return
    tensors, first_byte = read_header(path)
    for name, tensor in tensors.items():
        start, end = tensor["data_offsets"]
        yield _Region(f"{name} {tensor['dtype']} {tensor['shape']}", path, first_byte + start, end - start)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Of a safetensors file, name -> `dtype`, `shape` and `data_offsets` of each tensor; and where its data begins.

    Raises:
        ValueError: it is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length)) if 0 < length < size else None
        except (UnicodeDecodeError, json.JSONDecodeError):
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a safetensors file, found something else: save or download the model again")
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}, 8 + length
