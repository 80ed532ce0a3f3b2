"""Whether there is disk space for one more checkpoint, and memory for copies of its states."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import torch

from train.checkpoint.host_copies import available_memory

_SPARE = 1.05  # of the space needed: the last checkpoint's size says the next one's only about
_SPARE_MEMORY = 1.5
_PINNED = 2  # buffers that a GPU reaches directly take up to twice what they hold: see pinned_size


def space_shortage(run_dir: Path, size: int) -> str | None:
    """What the run directory lacks for a checkpoint of `size` bytes, or None."""
    needed = int(size * _SPARE)
    free = shutil.disk_usage(run_dir).free
    if free >= needed:
        return None
    return f"{free / 2**30:.2f} GiB are free in {run_dir}, a checkpoint needs about {needed / 2**30:.2f} GiB"


def memory_shortage(size: float, held: int, device: torch.device) -> str | None:
    """What this node lacks for copies of the states of all its processes, or None.

    Args:
        size: bytes that this process writes of a checkpoint.
        held: bytes of the buffers of its last save, which are used again.
        device: where the states lie.
    """
    factor = _PINNED if device.type == "cuda" else _SPARE_MEMORY
    needed = max(0, size - held) * factor
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    available = available_memory()
    if not needed or available >= needed * processes:
        return None
    return (
        f"{socket.gethostname()} has {available / 2**30:.2f} GiB, {processes} process(es) may take "
        f"{needed / 2**30:.2f} GiB each"
    )
