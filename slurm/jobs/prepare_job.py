"""What a preparation job goes through: one job, or one task of a job array.

Everything after the script's name goes to data_prep.prepare. Submitted again after a failure or the time limit, it goes
on: finished slices are kept. After a node failure SLURM starts it again by itself.
"""

import os
import re
import signal
import socket
import subprocess

from slurm.jobs import environment, site, submission
from slurm.jobs.launching import ended, ended_by_term
from slurm.jobs.words import Refusal, flag, quoted, say, without


class _Stopped:
    """Whether TERM has come: scancel, the time limit or a preemption."""

    def __init__(self):
        self.by_slurm = False
        signal.signal(signal.SIGTERM, self._heard)

    def _heard(self, number, frame):
        self.by_slurm = True


def main(words):
    """The exit code of the preparation."""
    stopped = _Stopped()
    here = site.Site()
    task = _Task(words, os.environ)
    task.check()
    site.check(here)
    inside = environment.enter(here)
    cpus = os.environ["SLURM_CPUS_PER_TASK"]
    say(
        "job {}, attempt {}, on {} with {} worker process(es): data_prep.prepare {}".format(
            os.environ.get("SLURM_JOB_ID", "?"),
            os.environ.get("SLURM_RESTART_COUNT", "0"),
            socket.gethostname(),
            cpus,
            " ".join(words),
        )
    )
    submission.say_changes(here)
    command = ["python", "-m", "data_prep.prepare", "--num-workers", cpus, *words, *task.flags]
    code = run_step(inside, command, cpus)
    if code:
        task.say_how_to_go_on(here, how_it_ended(code, stopped.by_slurm))
    return code


def run_step(inside, command, cpus):
    """The exit code of one task on one node. srun does not inherit --cpus-per-task from sbatch."""
    srun = ["srun", "--ntasks=1", "--cpus-per-task=" + cpus, "--export=ALL", *inside.srun_flags]
    return ended(subprocess.Popen([*srun, *inside.command(command)], env=inside.variables))


def how_it_ended(code, heard=False):
    """What to say of a step that failed.

    Args:
        heard: whether TERM has come to this script.
    """
    if heard or ended_by_term(code):
        return "was stopped by SLURM (scancel, time limit or preemption)"
    return "failed with exit code {}".format(code)


class _Task:
    """One job, or a task of an array: these share the work only if each knows its number and how many there are."""

    def __init__(self, words, given):
        self._given = given
        self._stage = flag("--stage", words) or ""
        self._tasks = flag("--num-tasks", words)
        self._rest = without(("--stage", "--num-tasks"), words)
        self._index = given.get("SLURM_ARRAY_TASK_ID")

    @property
    def flags(self):
        """What data_prep.prepare is told besides."""
        return ["--task-index", self._index] if self._tasks else []

    def check(self):
        """Refuse what would share the work wrongly.

        Raises:
            Refusal: it is no job, or an array's flags are not those of an array.
        """
        if not self._given.get("SLURM_CPUS_PER_TASK"):
            raise Refusal("submit this file with slurm/submit.sh or sbatch, do not run it")
        if self._tasks is not None and not re.match(r"\d+$", self._tasks):
            raise Refusal("--num-tasks must be a whole number, found '{}'".format(self._tasks))
        if self._index and self._tasks is None:
            raise Refusal(
                "this is task {} of a job array, which needs --stage tokenize or pack, and --num-tasks".format(
                    self._index
                )
            )
        if not self._index and self._tasks is not None:
            raise Refusal(
                "--num-tasks {} is for a job array: sbatch --array=0-{}, or --array=I for one task".format(
                    self._tasks, int(self._tasks) - 1
                )
            )

    def say_how_to_go_on(self, here, how):
        """After a failure."""
        tasks = self._tasks or here.text("PREPARE_TASKS")
        if not self._stage or tasks == "1":
            say(
                "prepare {}: submit the same command again once the cause is gone; finished slices are kept".format(how)
            )
            return
        which = ", task {} of 0-{},".format(self._index, int(self._tasks) - 1) if self._tasks else ""
        say(
            "{}{} {}: the jobs that wait for it do not start. Once the cause is gone and the array's other tasks have "
            "ended, submit".format(self._stage, which, how)
        )
        self._show_ways_on(here, tasks)

    def _show_ways_on(self, here, tasks):
        """The commands by themselves: the number of tasks may come from another place than env.sh."""
        submit = "PACKHAUL_PREPARE_TASKS={} slurm/submit.sh ".format(tasks)
        array = ["--array", self._index] if self._tasks else []
        rest = self._as_submitted(here)
        this = ["prepare", "--from", self._stage, *array]
        print("  this and what follows: " + submit + quoted([*this, *rest]))
        print("  the whole chain (skips what is done): " + submit + quoted(["prepare", *rest]))
        print("  this and nothing else: " + submit + quoted([*this, "--only", *rest]), flush=True)

    def _as_submitted(self, here):
        """The arguments with the recipe that was given, not its copy."""
        return submission.original_arguments(here.text("SUBMISSION")) or self._rest
