"""The job as SLURM describes it in the environment, and where its processes meet."""

import errno
import re
import socket

from slurm.jobs import answers
from slurm.jobs.words import Refusal, say

_FIRST_PORT, _PORTS = 15000, 15000  # below the kernel's range for outgoing connections
_TRIES = 50


class Job:
    """A job's own numbers.

    Attributes:
        id: SLURM's.
        restarts: how often it was requeued.
        node_list: as SLURM writes it, such as gpu[07,12].
        nodes: the names, in the order of SLURM_NODEID; known after `check`.
        cpus_per_task: CPUs of each node.
        here: name of the node that this runs on; '' where it is none of the job's.
        is_batch: a batch job; else we are within somebody's allocation (salloc, an interactive job).
    """

    def __init__(self, environment, site):
        self._site = site
        self._given = environment
        self.id = environment.get("SLURM_JOB_ID", "")
        self.name = environment.get("SLURM_JOB_NAME", "job")
        self.restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
        self.node_list = environment.get("SLURM_JOB_NODELIST", "")
        self.here = environment.get("SLURMD_NODENAME", "")
        self.partition = environment.get("SLURM_JOB_PARTITION", "")
        self.is_batch = not site.text("HERE")
        self.in_chain = self.is_batch and site.number("CHAIN") > 1
        self.chain_index = int(site.text("CHAIN_INDEX") or 1)
        self.chain_before = site.text("CHAIN_BEFORE")
        cpus = environment.get("SLURM_CPUS_PER_TASK", "")
        self.cpus_per_task = int(cpus or site.number("CPUS_PER_TASK"))
        self.nodes = []

    def check(self):
        """The job is what env.sh says: one of another size would train as a world of another size.

        Raises:
            Refusal: it is not.
        """
        if not self.id:
            raise Refusal(
                "submit this file with slurm/submit.sh or sbatch; within an allocation (salloc) there is slurm/run.sh"
            )
        wanted = self._site.number("NODES") + self._site.number("SPARE_NODES")
        found = int(self._given.get("SLURM_JOB_NUM_NODES", "1"))
        if found != wanted:
            raise Refusal(
                "this job has {} node(s), slurm/env.sh says PACKHAUL_NODES={}{}: use slurm/submit.sh, or sbatch "
                "--nodes={}".format(found, self._site.number("NODES"), self._spare(), wanted)
            )
        self._check_gpus()
        self.nodes = answers.host_names(self.node_list)[:wanted]

    def _spare(self):
        spare = self._site.number("SPARE_NODES")
        return " and PACKHAUL_SPARE_NODES={}".format(spare) if spare else ""

    def _check_gpus(self):
        """More than asked for is what an exclusive node gives; where SLURM counts none, the node check does."""
        wanted, found = self._site.gpus_per_node, self._given.get("SLURM_GPUS_ON_NODE", "")
        if wanted and re.match(r"\d+$", found) and int(found) < wanted:
            raise Refusal(
                "this job has {0} GPU(s) per node, slurm/env.sh says PACKHAUL_GPUS_PER_NODE={1}: use slurm/submit.sh, "
                "or sbatch --gpus-per-node={1}".format(found, wanted)
            )


def free_port(job, first_node, tries_before=0):
    """A port that differs between the jobs of a node, and that no process there holds on any interface."""
    port = _FIRST_PORT + (int(re.sub(r"\D", "", job.id) or 0) + tries_before) % _PORTS
    if first_node != job.here:
        return port  # it cannot be told from here, such as from the login node: an error shows it
    for number in range(1, _TRIES + 1):
        if not _is_held(port):
            return port
        say("port {} is in use on {}: trying the next (try {})".format(port, socket.gethostname(), number))
        port += 1
    raise Refusal("{} ports from {} on are in use on {}".format(_TRIES, port - _TRIES, socket.gethostname()))


def _is_held(port):
    """Whether a server could not listen there, on all interfaces of both kinds."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended is none
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
                listener.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return True
    return False
