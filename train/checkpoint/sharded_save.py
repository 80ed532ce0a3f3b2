"""DCP's save in two halves: all ranks plan and copy together, then each writes its own files by itself.

`torch.distributed.checkpoint.save` holds training up until everything is on disk. Its `async_save` plans in a thread,
whose collective operations meet those of training: processes abort. Here nothing but the plan is collective, and that
is made before training goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from train.checkpoint.host_copies import CopyMemory, wait_for_device
from train.checkpoint.pending_save import Save
from train.checkpoint.shard_files import KEY, Shards
from train.checkpoint.tied_weights import tied_names
from train.run.distributed import gather_to_first, scatter_from_first

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import SavePlan

    from train.checkpoint.trainer_type import CheckpointedTrainer


_CALLS = 2  # of DCP's save in a checkpoint: accelerate's for the model and for the optimizer


class _Planner(DefaultSavePlanner):
    """Gives the writer what was copied when the plan was made."""

    def hold(self, plan: SavePlan, memory: CopyMemory | None) -> None:
        """Copy what this rank is to write; without `memory`, hold the states themselves."""
        data = {str(i): super(_Planner, self).resolve_data(item) for i, item in enumerate(plan.items)}
        if memory:
            data |= memory.snapshot({i: value for i, value in data.items() if torch.is_tensor(value)})
        else:
            wait_for_device()
        self._held = {item.index: data[str(i)] for i, item in enumerate(plan.items)}
        self.state_dict = {}

    def resolve_data(self, write_item: Any) -> Any:
        """DCP's writer asks for each tensor by this."""
        return self._held[write_item.index]


@contextlib.contextmanager
def intercepting_dcp_save(save: Save, trainer: CheckpointedTrainer) -> Iterator[None]:
    """Let the save take what accelerate gives to `torch.distributed.checkpoint.save`, in this thread and for its own
    folder: the states where they lie, not copies that accelerate has made in pageable memory. Every rank must open it,
    and may end it early, with an error."""
    import torch.distributed.checkpoint as dcp

    original, thread, calls = dcp.save, threading.get_ident(), []
    same = {KEY + name: KEY + of for name, of in tied_names(trainer.model).items()}
    config = trainer.accelerator.state.fsdp_plugin.state_dict_config
    offloads, config.offload_to_cpu = config.offload_to_cpu, False

    def intercept(state_dict: dict[str, Any], *, storage_writer: Any = None, **kwargs: Any) -> Any:
        path = getattr(storage_writer, "path", None)
        if threading.get_ident() != thread or path is None or not Path(path).is_relative_to(save.own):
            return original(state_dict, storage_writer=storage_writer, **kwargs)
        calls.append(path)
        _begin(save, state_dict, storage_writer, same)
        return None

    dcp.save = intercept
    try:
        yield
    finally:
        dcp.save, config.offload_to_cpu = original, offloads
        for _ in range(_CALLS - len(calls)):  # an error has come before: the others wait for this rank's plan
            _plan_together(save, _Planner(), None, None)


def _begin(save: Save, states: dict[str, Any], writer: Any, same: dict[str, str]) -> None:
    """Plan with all ranks, copy, and leave the writing to the background. Every rank must call it.

    An error is noted, never raised, so that no rank waits for another in a collective operation.
    """
    planner, own = _Planner(), None
    with save.noting():
        own = _plan_own(planner, states, writer, same)
    plan, metadata = _plan_together(save, planner, writer, own)
    if plan is None:
        return  # some rank has noted why
    shards = Shards(writer, Path(writer.path).relative_to(save.files_folder).as_posix(), metadata, same)
    save.shards.append(shards)

    def write() -> None:
        shards.results = writer.write_data(plan, planner).value()

    with save.noting():
        planner.hold(plan, save.memory)
        if save.memory:
            save.tasks.append(write)
        else:
            write()


def _plan_own(planner: _Planner, states: dict[str, Any], writer: Any, same: dict[str, str]) -> SavePlan:
    """What this rank has to write: nothing twice that the model holds once under two names."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    planner.set_up_planner(states, writer.storage_meta(), rank == 0)
    writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=True)
    writer.sync_files = False  # they are forced to disk when they are moved
    plan: SavePlan = writer.prepare_local_plan(planner.create_local_plan())
    return dataclasses.replace(plan, items=[item for item in plan.items if item.index.fqn not in same])


def _plan_together(save: Save, planner: _Planner, writer: Any, own: SavePlan | None) -> tuple[SavePlan | None, Any]:
    """This rank's part of the plan of all, which rank 0 makes, and there DCP's Metadata; None if a rank has no plan."""
    plans, metadata = gather_to_first(own), None
    parts: list[SavePlan | None] | None = None
    if plans is not None:
        parts = [None] * len(plans)
        usable = [plan for plan in plans if plan is not None]
        with save.noting():
            if len(usable) == len(plans):
                whole, metadata = planner.create_global_plan(usable)
                parts = writer.prepare_global_plan(whole)
    part = scatter_from_first(parts)
    return (planner.finish_plan(part) if part else None), metadata
