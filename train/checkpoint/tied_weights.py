"""Weights that a model holds once under two names, such as its embeddings and its head, are written once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.run.atomic_files import write_json_atomically

if TYPE_CHECKING:
    import torch


def tied_names(model: Any) -> dict[str, str]:
    """Names that the model reads from another one's weight -> that other name; only where it holds both as one."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {name: of for name, of in tied.items() if name in parameters and parameters[name] is parameters.get(of)}


def drop_copies(states: dict[str, torch.Tensor], model: Any) -> None:
    """Remove from a state dict whose tensors were cloned what is the same tensor under a second name.

    What differs from the weight it is tied to stays: nobody could rebuild it.
    """
    import torch

    for name, of in tied_names(model).items():
        if name in states and of in states and torch.equal(states[name], states[of]):
            del states[name]


def drop_copies_in_files(folder: Path, model: Any) -> list[str]:
    """The same for the safetensors in a folder; the names that were removed. Rewrites only files that hold one."""
    from safetensors import safe_open

    holders: dict[str, Path] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            holders |= dict.fromkeys(opened.keys(), file)
    removed = [n for n, of in tied_names(model).items() if n in holders and of in holders and _same(n, of, holders)]
    for file in {holders[name] for name in removed}:
        _rewrite_without(file, removed)
    index = folder / "model.safetensors.index.json"
    if removed and index.exists():
        _rewrite_index(index, removed)
    return removed


def _same(name: str, other: str, holders: dict[str, Path]) -> bool:
    import torch
    from safetensors import safe_open

    with safe_open(holders[name], framework="pt") as one, safe_open(holders[other], framework="pt") as two:
        return torch.equal(one.get_tensor(name), two.get_tensor(other))


def _rewrite_without(file: Path, names: list[str]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    rewritten = file.with_suffix(".tmp")
    with safe_open(file, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in opened.keys() if name not in names}  # noqa: SIM118
        save_file(kept, rewritten, opened.metadata())
    rewritten.replace(file)
    if not kept:
        file.unlink()


def _rewrite_index(index: Path, removed: list[str]) -> None:
    from safetensors import safe_open

    content = json.loads(index.read_text(encoding="utf-8"))
    places = {name: file for name, file in content["weight_map"].items() if name not in removed}
    total = 0
    for file in sorted(set(places.values())):
        with safe_open(index.parent / file, framework="pt") as opened:
            total += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    metadata = {**content.get("metadata", {}), "total_size": total}
    write_json_atomically(index, {"metadata": metadata, "weight_map": places})
