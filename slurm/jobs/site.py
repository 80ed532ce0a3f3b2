"""What slurm/env.sh says of a site, and all that is wrong with it.

env.sh exports its values; here they are read, never set.
"""

import os
import re
import shlex

from slurm.jobs.words import Refusal, bullets

_POSITIVE = "NODES CPUS_PER_TASK PREPARE_TASKS PREPARE_CPUS EXPORT_CPUS EVALUATE_CPUS SIGNAL_SECONDS CHAIN MAX_FAILURES"
_WHOLE = "PREPARE_AT_ONCE MAX_RESTARTS CHECK_NODES CHECK_SUBMISSION MIN_FREE_GIB MIN_ALLREDUCE_GBPS SPARE_NODES"
_WORDS = "SHARED_DIRS CONTAINER_MOUNTS SBATCH_OPTIONS PREPARE_OPTIONS EXPORT_OPTIONS EVALUATE_OPTIONS"
_RUNTIMES = ("apptainer", "singularity", "pyxis")
_KINDS = ("nvidia", "amd")
_TIME = re.compile(r"\d+(-\d+)?(:\d+){0,2}$")
_SIGNAL_EARLY = 60  # seconds, as the manual of sbatch says
_START = 180  # seconds that a start with its node check, and some steps, take at least
_GPUS = re.compile(r"(gpu:)?([\w.-]+:)?(\d+)$")


class Site:
    """The values of env.sh, by the names after PACKHAUL_."""

    def __init__(self, environment=None):
        given = os.environ if environment is None else environment
        self._values = {
            name[len("PACKHAUL_") :]: value for name, value in given.items() if name.startswith("PACKHAUL_")
        }

    def text(self, name):
        """As it is written; '' where it is not set."""
        return self._values.get(name, "")

    def number(self, name):
        """A whole number."""
        return int(self.text(name))

    def words(self, name):
        """Several values by blanks; quotes keep blanks within one."""
        return shlex.split(self.text(name))

    @property
    def gpus_per_node(self):
        """GPUs of each node, without their type; None where SLURM is not asked for GPUs."""
        found = _GPUS.match(self.text("GPUS_PER_NODE"))
        return int(found.group(3)) if found else None

    @property
    def evaluation_gpus(self):
        """GPUs of an evaluation; 1 where it has none."""
        found = _GPUS.match(self.text("EVALUATE_GPUS"))
        return max(1, int(found.group(3))) if found else 1

    @property
    def processes_per_node(self):
        """Training processes of each node."""
        return int(self.text("PROCS_PER_NODE") or self.gpus_per_node or 0)

    @property
    def world_size(self):
        """Training processes of a job."""
        return self.number("NODES") * self.processes_per_node

    @property
    def launch_file(self):
        """The configuration of `accelerate launch`: the submission's copy, where there is one."""
        copied = os.path.join(self.text("SUBMISSION"), "accelerate.yaml")
        if self.text("SUBMISSION") and os.path.exists(copied):
            return copied
        return "configs/accelerate/{}.yaml".format(self.text("ACCELERATE_CONFIG"))

    @property
    def env_file(self):
        """The env.sh that the values came from."""
        return os.path.join(self.text("SUBMISSION") or "slurm", "env.sh")


def check(site):
    """Refuse values that cannot be used, naming each.

    Raises:
        Refusal: every problem, one a line.
    """
    problems = list(_problems(site)) or list(_mismatches(site))
    if problems:
        raise Refusal("slurm/env.sh cannot be used:" + bullets(problems))


def _problems(site):
    for name in _POSITIVE.split():
        if not re.match(r"[1-9]\d*$", site.text(name)):
            yield "PACKHAUL_{} must be a whole number of 1 or more, found '{}'".format(name, site.text(name))
    for name in _WHOLE.split():
        if not re.match(r"\d+$", site.text(name)):
            yield "PACKHAUL_{} must be a whole number, found '{}'".format(name, site.text(name))
    for name in ("TIME", "PREPARE_TIME", "EXPORT_TIME", "EVALUATE_TIME"):
        if site.text(name) and not _TIME.match(site.text(name)):
            yield "PACKHAUL_{} must look like 24:00:00, found '{}'".format(name, site.text(name))
    for problem in (_gpu_problem(site), _unreadable_words(site), *_software_problems(site)):
        if problem:
            yield problem


def _gpu_problem(site):
    gpus, processes = site.text("GPUS_PER_NODE"), site.text("PROCS_PER_NODE")
    if gpus and not _GPUS.match(gpus):
        return "PACKHAUL_GPUS_PER_NODE must look like 8 or h100:8, or be empty, found '{}'".format(gpus)
    asked = site.text("EVALUATE_GPUS")
    if asked and not _GPUS.match(asked):
        return "PACKHAUL_EVALUATE_GPUS must look like 1 or h100:1, or be empty, found '{}'".format(asked)
    if processes and not re.match(r"[1-9]\d*$", processes):
        return "PACKHAUL_PROCS_PER_NODE must be a whole number of 1 or more, found '{}'".format(processes)
    if not processes and not site.gpus_per_node:
        return "PACKHAUL_PROCS_PER_NODE must be given, such as 1, where PACKHAUL_GPUS_PER_NODE is 0 or empty"
    return None


def _unreadable_words(site):
    for name in _WORDS.split():
        try:
            site.words(name)
        except ValueError as error:
            return "PACKHAUL_{}: {}: '{}'".format(name, error, site.text(name))
    for folder in site.words("SHARED_DIRS"):
        if not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
            return (
                "PACKHAUL_SHARED_DIRS: {} is not a folder that you can write to (a name with blanks is quoted)".format(
                    folder
                )
            )
    return None


def _software_problems(site):
    if not os.path.isfile(site.launch_file):
        yield "PACKHAUL_ACCELERATE_CONFIG: there is no {}".format(site.launch_file)
    runtime, kind, folder = site.text("CONTAINER_RUNTIME"), site.text("GPU_KIND"), site.text("VENV")
    if runtime not in _RUNTIMES:
        yield "PACKHAUL_CONTAINER_RUNTIME must be one of {}, found '{}'".format(", ".join(_RUNTIMES), runtime)
    if kind not in _KINDS:
        yield "PACKHAUL_GPU_KIND must be nvidia or amd, found '{}'".format(kind)
    if not site.text("CONTAINER") and not os.path.exists(os.path.join(folder, "bin", "python")):
        yield (
            "PACKHAUL_VENV: there is no {}/bin/python: make the environment (`make install`), or name the folder of "
            "another, venv or conda".format(folder)
        )


def _mismatches(site):
    """Numbers that do not fit each other."""
    processes, gpus, cpus = site.processes_per_node, site.gpus_per_node, site.number("CPUS_PER_TASK")
    if gpus and processes > gpus:
        yield "PACKHAUL_PROCS_PER_NODE: {} processes cannot share {} GPUs (PACKHAUL_GPUS_PER_NODE)".format(
            processes, gpus
        )
    if cpus < processes:
        yield "PACKHAUL_CPUS_PER_TASK: {} CPUs are less than one for each of {} processes".format(cpus, processes)
    # The signal would come at once, and every attempt would save after its first step.
    time, lead = site.text("TIME"), site.number("SIGNAL_SECONDS")
    if time and seconds_of(time) <= lead:
        yield "PACKHAUL_TIME: {} is no longer than PACKHAUL_SIGNAL_SECONDS={}".format(time, lead)


def doubt(site):
    """What can be used, but hardly is what was meant, of a training; '' where nothing is."""
    time, lead = site.text("TIME"), site.number("SIGNAL_SECONDS")
    left = seconds_of(time) - lead - _SIGNAL_EARLY if time else _START
    if left >= _START:
        return ""
    return (
        "PACKHAUL_TIME: {} with PACKHAUL_SIGNAL_SECONDS={} leaves each attempt {} s (SLURM may send the signal {} s "
        "early), and a start takes minutes: it may be requeued after its first step, again and again"
    ).format(time, lead, max(0, left), _SIGNAL_EARLY)


def seconds_of(time):
    """Of minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
