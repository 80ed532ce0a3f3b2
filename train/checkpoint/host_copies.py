"""Copies of training states in host memory, and how much of that memory is available."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch


class CopyMemory:
    """Copies of states in host memory, in buffers that are used again: new memory costs more than copying."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[torch.UntypedStorage]] = {}
        self._lent: list[tuple[tuple[int, bool], torch.UntypedStorage]] = []
        self.size = 0  # bytes that all buffers take

    def snapshot(self, value: dict[str, Any]) -> dict[str, Any]:
        """A copy that does not change until `release`.

        Tensors that share memory share it in the copy too, so that what is saved of it is, byte for byte, what would be
        saved of the original.
        """
        wait_for_device()
        result: dict[str, Any] = self._copy(value, {})
        return result

    def release(self) -> None:
        """Use the memory of all copies again, now that nobody reads them; buffers that were not needed are freed."""
        self._free = {}
        for key, storage in self._lent:
            self._free.setdefault(key, []).append(storage)
        self.size = sum(pinned_size(size) if pinned else size for (size, pinned), _ in self._lent)
        self._lent = []

    def _copy(self, value: Any, copied: dict[int, torch.UntypedStorage]) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy_tensor(value, copied)
        if type(value) in (dict, OrderedDict):
            result = type(value)((key, self._copy(item, copied)) for key, item in value.items())
            if hasattr(value, "_metadata"):
                result._metadata = value._metadata  # of a module's state_dict; a plain dict has none
            return result
        if type(value) in (list, tuple):
            return type(value)(self._copy(item, copied) for item in value)
        if value is None or isinstance(value, (bool, int, float, str, bytes, torch.Size, torch.dtype, type)):
            return value
        return copy.deepcopy(value)  # such as a loss scaler, which counts on

    def _copy_tensor(self, tensor: torch.Tensor, copied: dict[int, torch.UntypedStorage]) -> torch.Tensor:
        plain = tensor.detach()
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or plain.layout != torch.strided:
            return plain.cpu().clone()  # a class of its own may hold more than one storage
        storage = plain.untyped_storage()
        if not storage.data_ptr():
            return plain.cpu().clone()
        if storage.data_ptr() not in copied:
            copied[storage.data_ptr()] = self._take(storage).copy_(storage)
        result = torch.empty(0, dtype=plain.dtype)
        result.set_(copied[storage.data_ptr()], plain.storage_offset(), plain.shape, plain.stride())
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(result, tensor.requires_grad)
        return result.requires_grad_(tensor.requires_grad)

    def _take(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """A buffer of the size of `storage`; one that a GPU reaches directly, where it comes from there."""
        key = storage.nbytes(), storage.device.type == "cuda"
        if waiting := self._free.get(key):
            buffer = waiting.pop()
        else:
            buffer = torch.empty(key[0], dtype=torch.uint8, pin_memory=key[1]).untyped_storage()
        self._lent.append((key, buffer))
        return buffer


def wait_for_device() -> None:
    """Wait until no GPU writes any more what the host is about to read.

    Paged optimizers keep their states in memory that both share: it looks like the host's and is read without a wait.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pinned_size(size: int) -> int:
    """Bytes that a pinned buffer of `size` bytes takes: torch rounds them up to a power of two."""
    return 1 << (size - 1).bit_length() if size else 0


def available_memory(meminfo: Path = Path("/proc/meminfo"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: what the host has, and what the job's control group allows."""
    amounts = [2**62]
    with contextlib.suppress(OSError, ValueError):
        line = next(x for x in meminfo.read_text().splitlines() if x.startswith("MemAvailable:"))
        amounts.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().rsplit("::", 1)[-1].strip().lstrip("/")
        folder = cgroups / own
        while folder.is_relative_to(cgroups):
            amounts += _headroom(folder)
            folder = folder.parent
    return min(amounts)


def _headroom(folder: Path) -> list[int]:
    """What a control group (version 2) has left; file pages that can be dropped count as free."""
    try:
        limit = int((folder / "memory.max").read_text())  # "max" is no number: no limit
        used = int((folder / "memory.current").read_text())
        pages = [x for x in (folder / "memory.stat").read_text().splitlines() if x.startswith("inactive_file ")]
    except (OSError, ValueError):
        return []
    return [limit - used + int(pages[0].split()[1])] if pages else [limit - used]
