"""Small questions to all ranks: is this rank 0, each rank's value or problems, whether any has a flag set."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is rank 0."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def gather(value: T) -> list[T]:
    """The value of each rank, in order. Every rank must call it."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def gather_to_first(value: T) -> list[T] | None:
    """The value of each rank, in order, on rank 0; None on the others. Every rank must call it."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first() else None
    torch.distributed.gather_object(value, values)
    return values


def scatter_from_first(values: list[T] | None) -> T:
    """Of the values that rank 0 has, one for each rank, that of this rank. Every rank must call it."""
    if not torch.distributed.is_initialized():
        assert values is not None
        return values[0]
    mine: list[Any] = [None]
    torch.distributed.scatter_object_list(mine, values)
    own: T = mine[0]
    return own


def gather_problems(mine: Iterable[str]) -> list[str]:
    """The problems of all ranks, each once; one that rank 0 does not have ends with "(rank R on HOST)". Every rank must
    call it."""
    found = gather((socket.gethostname(), list(mine)))
    owners: dict[str, list[int]] = {}
    for rank, (_, problems) in enumerate(found):
        for problem in dict.fromkeys(problems):
            owners.setdefault(problem, []).append(rank)
    return [f"{problem}{_name(ranks, found[ranks[0]][0])}" for problem, ranks in owners.items()]


def _name(ranks: list[int], host: str) -> str:
    """Which ranks have a problem, by the first of them and its host."""
    if ranks[0] == 0:
        return ""
    more = f" and {len(ranks) - 1} more" if len(ranks) > 1 else ""
    return f" (rank {ranks[0]} on {host}{more})"


def all_reduce_max(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank. Every rank must call it.

    A process alone does not ask the device, whose answer would wait for all its work.
    """
    if not torch.distributed.is_initialized():
        return flag
    value = torch.full((1,), int(flag), device=device)
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return bool(value.item())
