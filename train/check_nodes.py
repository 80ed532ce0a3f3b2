"""Entry: check every node of a job before the training, and name those that are unfit.

    srun --ntasks-per-node=1 packhaul check-nodes        (slurm/train.sbatch runs it before the training)
    packhaul check-nodes --gpus-only                     (this machine's GPUs alone, without SLURM)

One task on each node looks at its GPUs (driver, errors, who holds memory, speed), limits, folders, network interface
and versions; the first node compares the answers. Then all GPUs add up a tensor over the network that the training
will use. A node that does not answer, or hangs in this, is named after a bounded wait. What is expected comes from
the variables of slurm/env.sh.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from typing import Any

from data_prep.command_parser import CommandParser
from data_prep.program_name import usage_name
from train.node_check import adding_up, meeting
from train.node_check.adding_up import Sum, World
from train.node_check.bounded import Background
from train.node_check.comparison import problems_of
from train.node_check.expected import Expected, expected_of, least_speed
from train.node_check.findings import Node
from train.node_check.folders import FOLDER_SECONDS, look_at_folders
from train.node_check.gpus import GPUS_SECONDS, look_at_gpus
from train.node_check.host import GIT_SECONDS, NAME_SECONDS, host_problems, versions
from train.node_check.report import as_json, say, say_of, summary, table, write_unfit


def main(argv: list[str] | None = None) -> int:
    """0 if all nodes are fit, 1 if not, with one line for each problem on the first."""
    parser = CommandParser(
        prog=usage_name("train.check_nodes"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus-only", action="store_true", help="the GPUs of this machine; the last line is JSON")
    try:
        if parser.parse_args(argv).gpus_only:
            return check_gpus(least_speed(os.environ))
        expected = expected_of(os.environ)
    except ValueError as error:
        parser.error(str(error))
    rank, names = int(os.environ["SLURM_NODEID"]), os.environ["PACKHAUL_NODE_NAMES"].split()
    return Check(expected, rank, names).run()


class Check:
    """The check on one node."""

    def __init__(self, expected: Expected, rank: int, names: list[str]) -> None:
        self.expected, self.rank, self.names = expected, rank, names
        self.began = time.monotonic()
        self.log_dir = os.environ.get("PACKHAUL_LOG_DIR")
        # For a node to look at itself; the first one may have taken no time for that itself.
        self.patience = FOLDER_SECONDS + NAME_SECONDS + GIT_SECONDS + (GPUS_SECONDS if expected.gpus else 0)

    def run(self) -> int:
        """1 if a node is unfit."""
        alone = len(self.names) == 1
        met = None if alone else Background(lambda: meeting.connect(os.environ, self.rank, len(self.names)))
        node = look(self.expected, self.rank, self.names)
        say(summary(node))  # here, as the network may be what is wrong
        if self.rank:
            say_of(node.name, node.problems)
        try:
            if met is None:
                return self.conclude([node]) or self.add_up_alone()
            return self.with_the_others(met, node)
        except (RuntimeError, TimeoutError) as error:  # torch raises both
            network = f"the network does not work: {(str(error).splitlines() or [repr(error)])[0]}"
            return self.refuse({node.name: [*(node.problems if self.rank == 0 else []), network]})

    def with_the_others(self, met: Background[Any], node: Node) -> int:
        """Compare, then add up."""
        store = met.result(meeting.ANSWER_SECONDS + 60)
        verdict = self.compare(store, node)
        if meeting.decide(store, self.rank, "fit", verdict, 2 * self.others_wait()):
            return self.end(store, 1)  # a node that cannot be trusted is not asked to talk: it could hang
        host, port = os.environ["PACKHAUL_MAIN_IP"], int(os.environ["PACKHAUL_MAIN_PORT"])
        world = World(store, host, port, self.names, self.rank, self.expected.gpus or 0)
        return self.end(store, self.add_up(world))

    def compare(self, store: Any, node: Node) -> int | None:
        """The first node's verdict on all; the others tell it what they have."""
        if self.rank:
            meeting.answer(store, self.rank, node, 2 * self.others_wait())
            return None
        meeting.await_nodes(store, self.names, self.left(meeting.ANSWER_SECONDS))
        return self.conclude(*meeting.collect(store, self.names, node, self.others_wait()))

    def left(self, seconds: float) -> float:
        """Of a time that began with the check."""
        return max(5.0, self.began + seconds - time.monotonic())

    def others_wait(self) -> float:
        """Seconds for the first node, or the slowest one, to get as far."""
        return meeting.ANSWER_SECONDS + self.patience

    def end(self, store: Any, code: int) -> int:
        """The first node holds the store, and the others still read it."""
        if self.rank == 0:
            time.sleep(2)
        return code

    def conclude(self, nodes: list[Node], silent: dict[str, list[str]] | None = None) -> int:
        """On the first node: name the unfit ones, and those that did not answer."""
        for node in nodes:
            for note in node.notes:
                say(f"node {node.name}: note: {note}")
        unfit = problems_of(nodes, self.expected.min_speed)
        for name, problems in (silent or {}).items():
            unfit[name] = unfit.get(name, []) + problems
        if unfit:
            return self.refuse(unfit)
        say(f"{len(nodes)} node(s) looked at, none lacks anything")
        return 0

    def refuse(self, unfit: dict[str, list[str]]) -> int:
        """Lines and unfit.json; 1."""
        for name, problems in unfit.items():
            say_of(name, problems)
        if self.rank == 0:
            write_unfit(self.log_dir, unfit)
        return 1

    def add_up_alone(self) -> int:
        """On one node, over its GPUs, if there are several."""
        if (self.expected.gpus or 0) < 2:
            return 0
        return self.add_up(own_world(self.names, self.expected.gpus or 0))

    def add_up(self, world: World) -> int:
        """1 if the sum fails, is wrong or too slow."""
        own = adding_up.add_up_here(world)
        unfit = adding_up.gather(world, own)
        verdict = self.judge_sum(world, own, unfit) if self.rank == 0 else None
        return meeting.decide(world.store, self.rank, "added", verdict, adding_up.OTHERS_SECONDS)

    def judge_sum(self, world: World, own: Sum, unfit: dict[str, list[str]]) -> int:
        """On the first node. Where every node fails, none can be named."""
        if own.result:
            say(adding_up.line(world, own.result))
        if unfit and len(unfit) == len(world.names) > 1:
            for name, problems in unfit.items():
                say_of(name, problems)
            say("every node fails in the sum, so no node can be blamed: NCCL_DEBUG=INFO shows what the network does")
            return 1
        if unfit:
            return self.refuse(unfit)
        if slow := adding_up.too_slow(own.result, self.expected.min_all_reduce):
            say(slow)
            return 1
        return 0


def own_world(names: list[str], gpus: int) -> World:
    """All GPUs of this machine."""
    store = meeting.own_store()
    return World(store, "127.0.0.1", store.port, names, 0, gpus)


def look(expected: Expected, rank: int = 0, names: list[str] | None = None) -> Node:
    """Look at this node; bounded in time."""
    names = names or [socket.gethostname()]
    node = Node(names[rank], versions=versions())
    node.problems += host_problems(expected, rank, len(names))
    look_at_folders(node, expected)
    if expected.gpus != 0:
        look_at_gpus(node, expected.gpus)
    return node


def check_gpus(min_speed: float) -> int:
    """Look at the GPUs of this machine: a table, problems, and JSON as the last line; 1 if one is unfit."""
    node = Node(socket.gethostname(), versions=versions())
    look_at_gpus(node, None)
    problems = problems_of([node], min_speed).get(node.name, [])
    world_sum = Sum()
    if len(node.gpus) > 1 and not problems:
        world_sum = adding_up.add_up_here(own_world([node.name], len(node.gpus)))
    problems += world_sum.problems
    say(summary(node))
    for line in table(node.gpus):
        print(line)
    for note in node.notes:
        say(f"note: {note}")
    say_of(node.name, problems)
    print(as_json(node, problems, world_sum.result), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
