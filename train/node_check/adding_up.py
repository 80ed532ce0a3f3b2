"""A sum over all GPUs of the job, by the network that the training will use: right, in time, and fast enough."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from train.node_check.bounded import Ended, run_all, within
from train.node_check.gpu_process import SUM_SECONDS, add_up
from train.node_check.gpus import CHILD, result_of
from train.node_check.meeting import came

START_SECONDS = 120.0  # for the processes to import torch
WHOLE_SECONDS = START_SECONDS + SUM_SECONDS + 10.0
OTHERS_SECONDS = 2 * WHOLE_SECONDS + 60  # for a node that is done at once to hear of the last one


@dataclass(frozen=True)
class World:
    """Who adds up."""

    store: Any  # a torch.distributed.TCPStore that all know
    host: str  # where it is
    port: int
    names: list[str]  # of the nodes
    rank: int  # of this node
    gpus: int  # of each node; 0: one process a node, on the CPU

    @property
    def size(self) -> int:
        """All processes."""
        return len(self.names) * max(1, self.gpus)


@dataclass
class Sum:
    """What one node found."""

    result: dict[str, Any] = field(default_factory=dict)  # of its first process, as gpu_process.add_up says
    problems: list[str] = field(default_factory=list)


def add_up_here(world: World) -> Sum:
    """This node's part. Bounded by WHOLE_SECONDS."""
    return _on_gpus(world) if world.gpus else _on_cpu(world)


def _on_cpu(world: World) -> Sum:
    import torch

    try:
        work = lambda: add_up(world.store, world.rank, world.size, torch.device("cpu"))  # noqa: E731
        found = within(WHOLE_SECONDS, work)
    except TimeoutError:
        return Sum(problems=[f"the sum over all nodes hangs: not there within {WHOLE_SECONDS:g} s"])
    except RuntimeError as error:
        return Sum(problems=[f"the sum over all nodes fails: {(str(error).splitlines() or [repr(error)])[0]}"])
    return Sum(found, [] if found["right"] else ["a sum over all nodes came out wrong"])


def _on_gpus(world: World) -> Sum:
    place = [str(world.size), world.host, str(world.port)]
    first = world.rank * world.gpus
    commands = {i: [*CHILD, "add_up", str(first + i), *place, str(i)] for i in range(world.gpus)}
    done = run_all(commands, WHOLE_SECONDS)
    problems = [f"GPU {i}: {problem}" for i in done for problem in _process_problems(done[i])]
    return Sum(result_of(done[0]) or {}, problems)


def _process_problems(done: Ended) -> Iterator[str]:
    if done.code is None:
        yield f"the sum over all GPUs hangs: not there within {WHOLE_SECONDS:g} s"
    elif done.code:
        yield f"the sum over all GPUs fails: {done.last_words}"
    elif not (result_of(done) or {}).get("right"):
        yield "a sum over all GPUs came out wrong"


def gather(world: World, own: Sum) -> dict[str, list[str]]:
    """On the first node, the problems of each node that has some; on the others, after telling it, nothing."""
    world.store.set(f"sum{world.rank}", json.dumps(own.problems))
    found: dict[str, list[str]] = {}
    deadline = time.monotonic() + WHOLE_SECONDS
    for rank, name in enumerate(world.names if world.rank == 0 else []):
        if came(world.store, f"sum{rank}", deadline):
            found[name] = json.loads(world.store.get(f"sum{rank}"))
        else:
            found[name] = ["did not tell how the sum over all GPUs went: it hangs"]
    return {name: problems for name, problems in found.items() if problems}


def line(world: World, result: dict[str, Any]) -> str:
    """How the sum went, in words."""
    who = f"{world.size} processes, one for each GPU" if world.gpus else "one process a node, as no GPUs were asked for"
    nodes = f"{len(world.names)} nodes add" if len(world.names) > 1 else "1 node adds"
    return (
        f"{nodes} up {result['mib']} MiB by {result['backend']} in {result['seconds']:.3f} s: "
        f"{result['gbs']:.3g} GB/s ({who})"
    )


def too_slow(result: dict[str, Any], least: float) -> str | None:
    """In words, if the sum is slower than PACKHAUL_MIN_ALLREDUCE_GBPS asks for."""
    if result["gbs"] >= least:
        return None
    return (
        f"the sum over all GPUs reaches {result['gbs']:.3g} GB/s, {least:g} expected (PACKHAUL_MIN_ALLREDUCE_GBPS): "
        "with NCCL_DEBUG=INFO look for NET/Socket, where NET/IB is meant"
    )
