"""Entry: one task on each node of a job looks at its node; the first compares them and names the bad ones.

    srun --ntasks-per-node=1 python -m train.check_nodes        (slurm/train.sbatch runs it before the training)

GPUs and their driver, free space, the shared folders, the network interface and the clock are looked at; then all nodes
add up a tensor over the network that the training will use. A node that does not answer, or hangs in this, is named
after a bounded wait. What is expected comes from the variables of slurm/env.sh.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 120  # for a node to start Python and to be heard
MAX_CLOCK_SECONDS = 5.0  # apart from the first node's: log lines, caches and certificates mislead beyond
_TENSOR = 4_000_000  # fp32 numbers, 16 MB: as much as one bucket of gradients


@dataclass(frozen=True)
class Expected:
    """What every node should have."""

    gpus: int
    min_free_gib: float
    shared_dirs: tuple[str, ...]
    token: str  # a file that the first node has written into each of them
    interface: str


@dataclass
class Node:
    """What one node has."""

    host: str
    gpus: list[str] = field(default_factory=list)  # names
    driver: str = ""
    clock: float = 0.0  # seconds apart from the first node's
    problems: list[str] = field(default_factory=list)


def main() -> int:
    """0 if all nodes are fit, 1 if not, with one line for each problem on the first."""
    parser = argparse.ArgumentParser(
        prog="python -m train.check_nodes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    environment = os.environ
    if missing := [name for name in ("SLURM_NODEID", "PACKHAUL_NODE_NAMES") if name not in environment]:
        parser.error(f"{' and '.join(missing)} not set: this runs in a step of a job, as slurm/train.sbatch starts it")
    rank, names = int(environment["SLURM_NODEID"]), environment["PACKHAUL_NODE_NAMES"].split()
    node = look(expected_of(environment))
    if len(names) == 1:
        return _conclude([node])
    for problem in node.problems:  # said here as well: the network may be what is wrong
        print(f"packhaul: node {node.host}: {problem}", flush=True)
    try:
        store = _store(environment, rank, len(names))
        nodes = gather(store, rank, names, node)
        if rank == 0:
            store.set("fit", str(_conclude(nodes)))
        if store.get("fit") != b"0":  # a node that cannot be trusted is not asked to talk: it could hang
            time.sleep(2)  # the first node holds the store, and the others still read it
            return 1
        return _add_up(store, rank, names)
    except (RuntimeError, TimeoutError) as error:  # torch raises both
        print(f"packhaul: node {node.host}: {error}", flush=True)
        return 1


def expected_of(environment: Mapping[str, str]) -> Expected:
    """What slurm/env.sh says."""
    dirs = (*environment["PACKHAUL_SHARED_DIRS"].split(), environment["PACKHAUL_OUTPUT_DIR"])
    return Expected(
        gpus=int(environment["PACKHAUL_GPUS_PER_NODE"]),
        min_free_gib=float(environment["PACKHAUL_MIN_FREE_GIB"]),
        shared_dirs=dirs,
        token=environment["PACKHAUL_TOKEN"],
        interface=environment.get("PACKHAUL_NETWORK_INTERFACE", ""),
    )


def look(expected: Expected) -> Node:
    """Look at this node."""
    node = Node(socket.gethostname())
    if expected.gpus:
        node.gpus, node.driver = _gpus(node.problems)
        if len(node.gpus) != expected.gpus and not node.problems:
            node.problems.append(f"expected {expected.gpus} GPUs, found {len(node.gpus)}: {', '.join(node.gpus)}")
    node.problems += _folder_problems(expected)
    interfaces = sorted(path.name for path in Path("/sys/class/net").iterdir())
    if expected.interface and expected.interface not in interfaces:
        node.problems.append(
            f"no network interface {expected.interface} (PACKHAUL_NETWORK_INTERFACE); it has: {' '.join(interfaces)}"
        )
    return node


def _gpus(problems: list[str]) -> tuple[list[str], str]:
    """Names and driver, of the GPUs that answer."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        problems.append(f"nvidia-smi does not answer: {error}")
        return [], ""
    if done.returncode:
        problems.append(f"nvidia-smi fails: {(done.stdout + done.stderr).strip()}")
        return [], ""
    rows = [line.rsplit(", ", 1) for line in done.stdout.strip().splitlines()]
    return [row[0] for row in rows], rows[0][-1] if rows else ""


def _folder_problems(expected: Expected) -> Iterator[str]:
    for folder in expected.shared_dirs:
        if not Path(folder, expected.token).exists():
            yield f"{folder} is another folder here than on the first node: use a shared one"
            continue
        free = shutil.disk_usage(folder).free / 2**30
        if free < expected.min_free_gib:
            yield f"{folder} has {free:.1f} GiB free, {expected.min_free_gib:g} expected (PACKHAUL_MIN_FREE_GIB)"


def compare(nodes: list[Node]) -> list[str]:
    """Every problem, each beginning with its node's name."""
    problems = [f"node {node.host}: {problem}" for node in nodes for problem in node.problems]
    for what, of_node in (("GPUs", lambda n: ", ".join(sorted(set(n.gpus)))), ("driver", lambda n: n.driver)):
        usual = Counter(of_node(node) for node in nodes).most_common(1)[0][0]
        problems += [
            f"node {node.host}: {what} {of_node(node) or 'none'}, most nodes have {usual or 'none'}"
            for node in nodes
            if of_node(node) != usual and not node.problems
        ]
    problems += [
        f"node {node.host}: its clock is {abs(node.clock):.0f} s {'ahead of' if node.clock > 0 else 'behind'} that of "
        f"{nodes[0].host}, {MAX_CLOCK_SECONDS:.0f} s at most expected"
        for node in nodes
        if abs(node.clock) > MAX_CLOCK_SECONDS
    ]
    return problems


def gather(store: Any, rank: int, names: list[str], node: Node) -> list[Node]:
    """Every node's findings, on the first; its own on the others.

    Args:
        store: a torch.distributed.TCPStore that all nodes know.

    Raises:
        TimeoutError: nodes did not answer in ANSWER_SECONDS; their names.
    """
    if rank:
        store.wait([f"ask{rank}"])  # the answer holds the time right after the question
        store.set(f"node{rank}", json.dumps({**asdict(node), "clock": time.time()}))
        return [node]
    nodes, deadline = [node], time.monotonic() + ANSWER_SECONDS
    silent = []
    for other, name in enumerate(names[1:], start=1):
        asked = time.time()
        store.set(f"ask{other}", "")
        try:
            left = max(1.0, deadline - time.monotonic())
            store.wait([f"node{other}"], timedelta(seconds=left))
            found = json.loads(store.get(f"node{other}"))
        except RuntimeError:  # torch's DistStoreError
            silent.append(name)
            continue
        nodes.append(Node(**{**found, "clock": _apart(found["clock"], asked, time.time())}))
    if silent:
        raise TimeoutError(
            f"{', '.join(silent)} did not answer within {ANSWER_SECONDS} s: the node hangs, or its network does not "
            f"reach {names[0]} (PACKHAUL_NETWORK_INTERFACE)"
        )
    return nodes


def _apart(answered: float, asked: float, heard: float) -> float:
    """Seconds between two clocks at least, as the answer was given between the question and now."""
    return min(0.0, answered - asked) + max(0.0, answered - heard)


def _store(environment: Mapping[str, str], rank: int, world_size: int) -> Any:
    from torch.distributed import TCPStore

    host, port = environment["PACKHAUL_MAIN_IP"], int(environment["PACKHAUL_MAIN_PORT"])
    timeout = timedelta(seconds=ANSWER_SECONDS + 30)
    # Not waiting for all: who is missing has to be named.
    return TCPStore(host, port, world_size, rank == 0, timeout, wait_for_workers=False)


def _add_up(store: Any, rank: int, names: list[str]) -> int:
    """Sum a tensor over all nodes; 1 if that fails or is wrong."""
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    timeout = timedelta(seconds=ANSWER_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=len(names), timeout=timeout)
    tensor = torch.full((_TENSOR,), float(rank + 1), device=device)
    dist.all_reduce(tensor)  # the first one makes the connections
    right = bool((tensor == len(names) * (len(names) + 1) / 2).all())
    started = time.monotonic()
    dist.all_reduce(tensor)
    right = right and float(tensor[0]) > 0  # waits for the device
    seconds = time.monotonic() - started
    if rank == 0:
        print(f"packhaul: {len(names)} nodes add up {tensor.nbytes / 2**20:.0f} MiB by {backend} in {seconds:.3f} s")
    dist.barrier()
    dist.destroy_process_group()
    if not right:
        print(f"packhaul: node {names[rank]}: a sum over all nodes came out wrong", flush=True)
    return 0 if right else 1


def _conclude(nodes: list[Node]) -> int:
    problems = compare(nodes)
    for problem in problems:
        print(f"packhaul: {problem}", flush=True)
    if not problems:
        print(f"packhaul: {len(nodes)} node(s) looked at, none lacks anything", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
