"""How the nodes meet: the store on the first one, each node's answer, and its verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from train.node_check.findings import Node, node_from

ANSWER_SECONDS = 120.0  # for a node to start Python, to look at itself without GPUs, and to answer


def connect(environment: Mapping[str, str], rank: int, world_size: int) -> Any:
    """The store that all nodes know (a torch.distributed.TCPStore); the first node holds it.

    Raises:
        RuntimeError: the first node does not answer.
    """
    from torch.distributed import TCPStore

    host, port = environment["PACKHAUL_MAIN_IP"], int(environment["PACKHAUL_MAIN_PORT"])
    timeout = timedelta(seconds=ANSWER_SECONDS + 30)
    # Not waiting for all: who is missing has to be named.
    store = TCPStore(host, port, world_size, rank == 0, timeout, wait_for_workers=False)
    store.set(f"here{rank}", "")
    return store


def own_store() -> Any:
    """A store of this machine alone, at a free port."""
    from torch.distributed import TCPStore

    return TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=ANSWER_SECONDS), wait_for_workers=False)


def await_nodes(store: Any, names: list[str], seconds: float) -> None:
    """On the first node: wait until every node is there, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    for rank in range(1, len(names)):
        came(store, f"here{rank}", deadline)


def collect(store: Any, names: list[str], node: Node, seconds: float) -> tuple[list[Node], dict[str, list[str]]]:
    """On the first node: the findings of all that answer within `seconds`, its own first; and the problem of each that
    is not there, or does not answer."""
    nodes, missing, silent, deadline = [node], [], {}, time.monotonic() + seconds
    for other, name in enumerate(names[1:], start=1):
        if not store.check([f"here{other}"]):
            missing.append(name)
            continue
        asked = time.time()
        store.set(f"ask{other}", "")
        if not came(store, f"node{other}", deadline):
            silent[name] = [f"was there, and did not answer within {seconds:.0f} s: something hangs on it"]
            continue
        found = json.loads(store.get(f"node{other}"))
        nodes.append(node_from({**found, "clock": apart(found["clock"], asked, time.time())}))
    return nodes, silent | _missing(names, missing)


def _missing(names: list[str], missing: list[str]) -> dict[str, list[str]]:
    """The problem of each node that did not come."""
    if len(missing) == len(names) - 1 > 1:  # all others at once: it is this one
        problem = f"no other node reaches it within {ANSWER_SECONDS:.0f} s: its network is cut, or"
        return {names[0]: [f"{problem} PACKHAUL_NETWORK_INTERFACE is not the interface between the nodes"]}
    problem = (
        f"did not answer within {ANSWER_SECONDS:.0f} s: the node hangs, or its network does not reach {names[0]} "
        "(PACKHAUL_NETWORK_INTERFACE)"
    )
    return {name: [problem] for name in missing}


def answer(store: Any, rank: int, node: Node, seconds: float) -> None:
    """On another node: tell the first one when it asks, as the answer holds the time right after the question.

    Raises:
        RuntimeError: it does not ask within `seconds`.
    """
    store.wait([f"ask{rank}"], timedelta(seconds=seconds))
    store.set(f"node{rank}", json.dumps({**asdict(node), "clock": time.time()}))


def decide(store: Any, rank: int, question: str, verdict: int | None, seconds: float) -> int:
    """The first node's verdict, which all nodes end with.

    Args:
        verdict: the first node's own; None on the others.
        seconds: for the others to wait.
    """
    if rank == 0:
        store.set(question, str(verdict))
        return int(verdict or 0)
    store.wait([question], timedelta(seconds=seconds))
    return int(store.get(question))


def came(store: Any, key: str, deadline: float) -> bool:
    """Whether a key is set, by a time of time.monotonic()."""
    left = deadline - time.monotonic()
    if left <= 0:
        return bool(store.check([key]))
    try:
        store.wait([key], timedelta(seconds=left))
    except RuntimeError:  # torch's DistStoreError
        return False
    return True


def apart(answered: float, asked: float, heard: float) -> float:
    """Seconds between two clocks at least, as the answer was given between the question and now."""
    return min(0.0, answered - asked) + max(0.0, answered - heard)
