"""The weights of a sharded model gathered on rank 0, one after the other: in host memory, or on disk where it lacks."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from train.checkpoint.host_copies import available_memory

log = logging.getLogger(__name__)

Keep = Callable[[torch.Tensor], torch.Tensor]  # takes a whole tensor on any device, and holds it for the writer


def gather(states: Mapping[str, Any], keep: Keep | None) -> dict[str, Any]:
    """The states whole, with no more than one tensor on this rank besides what is kept. Every rank must call it.

    Args:
        states: by name, as `get_model_state_dict` gives them; DTensors are gathered.
        keep: None on ranks that keep nothing.
    """
    whole: dict[str, Any] = {}
    for name, value in states.items():
        tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
        if keep is not None:
            whole[name] = keep(tensor) if torch.is_tensor(tensor) else tensor
        del tensor  # before the next one is gathered
    return whole


def keep_for(states: Mapping[str, Any], folder: Path) -> Keep:
    """In host memory where all of them fit, else in `folder`."""
    size = sum(value.numel() * value.element_size() for value in states.values() if torch.is_tensor(value))
    available = available_memory()
    if size <= available:
        return lambda tensor: tensor.cpu()
    log.info(
        f"the weights take {size / 2**30:.2f} GiB, this host has {available / 2**30:.2f} GiB of memory: they are "
        f"gathered in files in {folder}, which take as much space until they are saved"
    )
    return lambda tensor: on_disk(tensor, folder)


def on_disk(tensor: torch.Tensor, folder: Path) -> torch.Tensor:
    """The tensor in a file of `folder` that has no name and goes when the tensor does.

    Raises:
        OSError: the disk is full. Without the space taken first, a write to the mapped file would end the process.
    """
    if tensor.numel() == 0:
        return tensor.cpu()
    size = tensor.numel() * tensor.element_size()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".gathered-") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    mapped = mapped.view(tensor.shape)
    mapped.copy_(tensor)
    return mapped
