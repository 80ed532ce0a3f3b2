"""Where the project's software runs: a virtual environment, a conda environment or a container."""

import os
import socket
import sys

from slurm.jobs.answers import finished
from slurm.jobs.words import Refusal

# Modules and conda are functions of a shell. What they set is taken over; what they print goes to the job's log.
_ACTIVATE = '. "$0"; activate >&2 || exit $?; env -0'


class Environment:
    """How a command runs in it: on this node, or as a step of the job."""

    def __init__(self, variables, inside=(), srun_flags=()):
        self.variables = variables
        self._inside = list(inside)
        self.srun_flags = list(srun_flags)  # a container that srun itself starts (pyxis)

    def command(self, words):
        """As srun has to start it."""
        return [*self._inside, *words]

    def run(self, words, timeout=None):
        """Run it once, on this node; its exit code, output and errors."""
        command = self.command(words)
        if self.srun_flags:  # only srun can enter the container
            command = ["srun", "--nodes=1", "--ntasks=1", *self.srun_flags, *words]
        return finished(command, timeout, self.variables)


def enter(site):
    """The environment that env.sh names.

    Raises:
        Refusal: modules, the environment or the container's program are not on this node.
    """
    variables = _activated(site)
    image, runtime = site.text("CONTAINER"), site.text("CONTAINER_RUNTIME")
    if not image:
        return Environment(variables)
    mounts = _mounts(site)
    if runtime == "pyxis":
        # On srun, not in #SBATCH lines: the batch script has to stay outside, where scontrol is.
        pairs = ",".join("{0}:{0}".format(folder) for folder in mounts)
        flags = ["--container-image=" + image, "--container-mounts=" + pairs, "--container-workdir=" + os.getcwd()]
        return Environment(variables, srun_flags=flags)
    if not _found(runtime, variables):
        raise Refusal("PACKHAUL_CONTAINER is set, but this node has no {}: {}".format(runtime, socket.gethostname()))
    inside = [runtime, "exec", "--pwd", os.getcwd()]
    if site.gpus_per_node != 0:
        inside.append("--rocm" if site.text("GPU_KIND") == "amd" else "--nv")
    for folder in mounts:
        inside += ["--bind", folder]
    return Environment(variables, inside=[*inside, image])


def _activated(site):
    code, out, printed = finished(["bash", "-c", _ACTIVATE, site.env_file])
    if code:
        raise Refusal(printed.strip() or "the environment cannot be entered: exit code {}".format(code))
    sys.stderr.write(printed)
    sys.stderr.flush()
    return dict(pair.split("=", 1) for pair in out.split("\0") if "=" in pair)


def _mounts(site):
    """Absolute names, each once: the repository, shared folders and those that the site names."""
    mounts = []
    for name in (os.getcwd(), *site.words("SHARED_DIRS"), *site.words("CONTAINER_MOUNTS")):
        folder = os.path.realpath(name)
        if not os.path.isdir(folder):
            raise Refusal("PACKHAUL_CONTAINER_MOUNTS: there is no folder {}".format(folder))
        if folder not in mounts:
            mounts.append(folder)
    return mounts


def _found(program, variables):
    """Whether the PATH of these variables has it."""
    folders = variables.get("PATH", "").split(os.pathsep)
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in folders)
