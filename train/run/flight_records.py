"""Torch's flight recorder: which collective operation the ranks wait in, and which ranks miss it.

Each rank's recorder holds its last 2,000 operations. Torch writes it to a file when an operation of NCCL fails by its
time limit, and we do when a hang is found. Torch's own analyzer (`torchfrtrace`) reads the same files; it
needs those of all ranks, and evaluates texts that are in them.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PREFIX = "flight_recorder_rank_"
_FILE_NAMES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")  # torch's names, the older one last
_WORLD = "default_pg"  # what torch calls the group of all ranks


def set_up(folder: Path) -> None:
    """Let torch write its records into a folder when an operation fails by its time limit; what the user has set stays.
    Call it before the process group is made."""
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if not any(name in os.environ for name in _FILE_NAMES):
        os.environ[_FILE_NAMES[0]] = str(folder.absolute() / _PREFIX)


def dump(folder: Path, rank: int) -> None:
    """Write this rank's records, in torch's format; nothing where there are none.

    Raises:
        OSError: they cannot be written.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        return
    native = torch._C._distributed_c10d
    record = getattr(native, "_dump_nccl_trace", None) or getattr(native, "_dump_fr_trace", None)
    if record is None:
        return
    path = folder / f"{_PREFIX}{rank}"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(record(includeCollectives=True, includeStackTraces=False, onlyActive=False))
    temporary.replace(path)


def remove(folder: Path, rank: int) -> None:
    """Remove this rank's records of an earlier start.

    Raises:
        OSError: they cannot be removed.
    """
    (folder / f"{_PREFIX}{rank}").unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any] | None:
    """Records from a file; None if there is none, or if it holds anything but plain values.

    A pickle can run code by naming it. These name nothing, and any name is refused.
    """
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("entries"), list) else None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"expected plain values, found {module}.{name}")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A collective operation that is not done on all ranks of its group."""

    name: str  # such as all_reduce
    number: int  # of the operation in its group, from 1
    group: str  # what torch calls the group
    begun: list[int]  # ranks that have called it
    missed: list[int]  # ranks with records that have not
    queued: list[int]  # ranks that have called it and whose device has not begun it, where another's has
    unknown: list[int]  # ranks without records
    begun_at: int  # nanoseconds, on the rank that was first


def describe(folder: Path, world_size: int) -> str | None:
    """The operation that the ranks wait in, in words; None if the records show none."""
    records = {rank: read(folder / f"{_PREFIX}{rank}") for rank in range(world_size)}
    found = list(open_operations({rank: one for rank, one in records.items() if one}, world_size))
    if not found:
        return None
    one = min(found, key=lambda operation: (not operation.missed, operation.begun_at))
    group = "all ranks" if one.group == _WORLD else f"group {one.group}"
    lists = {
        "called by": one.begun,
        "missed by": one.missed,
        "not begun by the device of": one.queued,
        "no records of": one.unknown,
    }
    who = "; ".join(f"{words} rank(s) {', '.join(map(str, ranks))}" for words, ranks in lists.items() if ranks)
    return f"the ranks wait in {one.name}, number {one.number:,} of {group}: {who}"


def open_operations(records: dict[int, dict[str, Any]], world_size: int) -> Iterator[Operation]:
    """The operation of each group that the first rank to stop has not called, else the first that is not done.

    Args:
        records: by rank, as `read` gives them.
    """
    entries: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(dict)
    for rank, record in records.items():
        for entry in record["entries"]:
            if not entry["is_p2p"]:
                entries[_group(entry)].setdefault(rank, []).append(entry)
    for group, by_rank in entries.items():
        members = _members(group, records, sorted(by_rank), world_size)
        if operation := _first_open(by_rank, members, set(records)):
            yield operation


def _group(entry: dict[str, Any]) -> str:
    """Its name in torch, which is the same on all ranks."""
    return str(entry["process_group"][0])


def _members(group: str, records: dict[int, dict[str, Any]], seen: list[int], world_size: int) -> list[int]:
    """The ranks of a group. Where the records do not name them, as those of gloo: those that have used it, and those
    without records, which may have."""
    for record in records.values():
        ranks = ast.literal_eval(record["pg_config"].get(group, {}).get("ranks") or "[]")
        if ranks:
            return [int(rank) for rank in ranks]
    names = {tuple(entry["process_group"]) for record in records.values() for entry in record["entries"]}
    if (group, _WORLD) in names:
        return list(range(world_size))
    return sorted({*seen, *(rank for rank in range(world_size) if rank not in records)})


def _first_open(by_rank: dict[int, list[dict[str, Any]]], members: list[int], recorded: set[int]) -> Operation | None:
    last = {rank: by_rank[rank][-1]["collective_seq_id"] if rank in by_rank else 0 for rank in members}
    waiting = [entry for entries in by_rank.values() for entry in entries if _is_open(entry)]
    if not waiting:
        return None
    # One that a rank has not called is at fault; others may be done, and not noted yet.
    called_by_all = min(number for rank, number in last.items() if rank in recorded)
    missed = [entry for entry in waiting if entry["collective_seq_id"] > called_by_all]
    first = min(missed or waiting, key=lambda entry: (entry["collective_seq_id"], entry["time_created_ns"]))
    number = first["collective_seq_id"]
    return Operation(
        name=first["profiling_name"].partition(":")[2] or first["profiling_name"],
        number=number,
        group=first["process_group"][1] if first["process_group"][1] != "undefined" else _group(first),
        begun=[rank for rank in members if rank in recorded and last[rank] >= number],
        missed=[rank for rank in members if rank in recorded and last[rank] < number],
        queued=_queued(by_rank, number),
        unknown=[rank for rank in members if rank not in recorded],
        begun_at=first["time_created_ns"],
    )


def _queued(by_rank: dict[int, list[dict[str, Any]]], number: int) -> list[int]:
    states = {
        rank: entry["state"]
        for rank, entries in by_rank.items()
        for entry in entries
        if entry["collective_seq_id"] == number
    }
    begun = any(state != "scheduled" for state in states.values())
    return [rank for rank, state in sorted(states.items()) if begun and state == "scheduled"]


def _is_open(entry: dict[str, Any]) -> bool:
    """Gloo's operations never become "completed", but are retired when they are done."""
    return entry["state"] != "completed" and not entry["retired"]
