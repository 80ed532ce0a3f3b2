"""The files of sharded states, as torch.distributed.checkpoint (DCP) lays them out: each rank's own, and `.metadata`.

`.metadata` says which part of which tensor lies where. It is written last, by rank 0 alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.run.atomic_files import FileRecord, flush

if TYPE_CHECKING:
    import torch

MODEL = "pytorch_model_fsdp_0"  # accelerate's names of the folders in a checkpoint
OPTIMIZER = "optimizer_0"
KEY = "model."  # before each name in MODEL


@dataclass
class Shards:
    """The states of one folder on their way to disk."""

    writer: Any  # DCP's FileSystemWriter
    folder: str  # below the checkpoint
    metadata: Any  # DCP's Metadata on rank 0, None on the others
    same: Mapping[str, str] = field(default_factory=dict)  # names that stand for another one's tensor -> that other
    results: list[Any] = field(default_factory=list)  # DCP's WriteResult of each tensor that this rank has written

    def complete(self, checkpoint: Path, results: list[list[Any]]) -> dict[str, FileRecord]:
        """Write `.metadata`, now that the files of all ranks lie in `checkpoint`; its record. Rank 0 calls it.

        Args:
            results: of each rank.

        Raises:
            OSError: it could not be written.
        """
        self.writer.path = checkpoint / self.folder
        self.writer.finish(self.metadata, [*results, self._name_twice(results)])
        file = self.writer.path / ".metadata"
        return {file.relative_to(checkpoint).as_posix(): flush([file])[file]}

    def _name_twice(self, results: list[list[Any]]) -> list[Any]:
        """Let `.metadata` have a tensor that was written once under its other name as well; where that lies."""
        from torch.distributed.checkpoint.metadata import MetadataIndex

        found = []
        entries = self.metadata.state_dict_metadata
        for name, of in self.same.items():
            if of in entries:
                entries[name] = entries[of]
                written = [r for rank in results for r in rank if r.index.fqn == of]
                found += [replace(r, index=MetadataIndex(name, r.index.offset, r.index.index)) for r in written]
        return found


def holds_sharded_model(checkpoint: Path) -> bool:
    """Whether a checkpoint has its model in shards."""
    return (checkpoint / MODEL / ".metadata").exists()


def read_model(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The whole tensors of a sharded model, by name, on the CPU, in the dtypes that were saved.

    In memory is the model and one shard. Needs no process group.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = dcp.FileSystemReader(checkpoint / MODEL)
    states: dict[str, torch.Tensor] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            states[name.removeprefix(KEY)] = torch.empty(entry.size, dtype=entry.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({"model": states}, storage_reader=reader, no_dist=True)
    return states
