"""accelerate's parallelism_config: FSDP2 that shards in groups and replicates over them (HSDP), and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "parallelism_config_"
REPLICATE, SHARD = "dp_replicate_size", "dp_shard_size"
_REFUSED = ("cp_size", "sp_size", "tp_size")


def sizes_from(environ: Mapping[str, str]) -> dict[str, int]:
    """The section of the YAML that `accelerate launch` made this environment of."""
    is_used = environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "").lower() == "true"
    names = (*((REPLICATE, SHARD) if is_used else ()), *_REFUSED)
    found = {name: environ.get(f"{PREFIX}{name}".upper()) for name in names}
    return {f"{PREFIX}{name}": int(size) for name, size in found.items() if size}


def check_parallelism(sizes: Mapping[str, Any], origin: str, kind: str, processes: int | None) -> Iterator[str]:
    """What is wrong with the sizes; accelerate finds it once the model is loaded, or not at all.

    Args:
        sizes: by name, such as "dp_shard_size".
        kind: the distributed_type.
        processes: over all machines; None if not known.
    """
    for name in _REFUSED:
        if sizes.get(name) not in (None, 1):
            yield f"{origin}: expected {PREFIX}{name} 1, found {sizes[name]}: {_why(name)}; remove parallelism_config"
    replicas, parts = (sizes.get(name) or 1 for name in (REPLICATE, SHARD))
    if (replicas, parts) == (1, 1) and not (kind == "FSDP" and sizes and (processes or 1) > 1):
        return
    if kind != "FSDP":
        yield f"{origin}: {REPLICATE} and {SHARD} are for distributed_type FSDP, found {kind}: remove them"
    elif parts == 1:
        yield (
            f"{origin}: expected {PREFIX}{SHARD} of 2 or more, found 1: FSDP would have nothing to cut. Write the "
            "processes of one machine, or remove parallelism_config"
        )
    elif processes not in (None, replicas * parts):
        yield (
            f"{origin}: {PREFIX}{REPLICATE} {replicas} times {PREFIX}{SHARD} {parts} makes {replicas * parts} "
            f"processes, {processes} are started: let the product be the number of processes"
        )


def _why(name: str) -> str:
    if name == "tp_size":
        return "this is not supported yet"
    return (
        "its gradients of packed rows are off by the number of ranks, and its loss is no mean over tokens, or "
        "documents attend to each other: write sequence_parallel in the run config"
    )
