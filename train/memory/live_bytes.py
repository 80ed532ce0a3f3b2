"""Counts the bytes of the tensors that are alive while code runs, and the most of them at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered, each new storage counts from the operation that makes it until it is freed.

    Storages are counted, not tensors: views share one. It works on fake tensors (`FakeTensorMode`), whose storages have
    a size and no contents, and then costs neither memory nor the time of computing. The idea is that of
    `torch.distributed._tools.mem_tracker.MemTracker`, which also names modules and takes a minute for 28 layers.

    Args:
        ignored: tensors that are not counted, such as weights.

    Attributes:
        now: bytes alive.
        peak: the most since `begin_phase`.
        peaks: of each phase so far, the one that runs last.
    """

    def __init__(self, ignored: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.now = 0
        self.peaks: list[int] = []
        self._references: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in ignored}
        self.begin_phase()

    def begin_phase(self) -> None:
        """Start another peak, from what is alive now."""
        self.peaks.append(self.now)

    @property
    def peak(self) -> int:
        """Of the phase that runs."""
        return self.peaks[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation, and counts what it returns."""
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._references:
            return
        self.now += size
        self.peaks[-1] = max(self.peaks[-1], self.now)
        self._references[key] = weakref.ref(storage, lambda _: self._free(key, size))

    def _free(self, key: int, size: int) -> None:
        del self._references[key]
        self.now -= size
