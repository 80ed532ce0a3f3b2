"""What a training job goes through, from the start of its script to its end.

On one node or many. Before the time limit, or when preempted, SLURM sends USR1 (or TERM) to this script, or to the
training processes. They save a checkpoint, write OUTPUT_DIR/preempted.json and exit with 0. What follows an attempt is
decided by slurm.jobs.decision: a requeue, another attempt in this allocation, or the end. In a chain (PACKHAUL_CHAIN)
nothing is requeued: the next job goes on, unless this one failed or was cancelled.

Exit code: 0 trained to the end, or another job goes on; 2 refused; 85 preempted, the checkpoint is saved but nothing
goes on by itself; else a failure.
"""

import json
import os
import time

from slurm.jobs import answers, chain, decision, environment, launching, site, submission, world
from slurm.jobs.attempt import Attempt
from slurm.jobs.checked_here import DESCRIBE
from slurm.jobs.decision import AGAIN, REQUEUE
from slurm.jobs.run_folders import Folders
from slurm.jobs.words import Refusal, say

_LATE_SIGNALS = (
    180  # seconds after a restart in which SLURM may deliver a signal for the attempt before: it tries for long
)


def main(words):
    """The exit code of the job."""
    signals = launching.Signals()
    signals.install()
    here = site.Site()
    site.check(here)
    job = world.Job(os.environ, here)
    job.check()
    inside = environment.enter(here)
    run = _described(inside, words)
    folders = Folders(run, job)
    if chain.is_over(folders.output_dir, job):
        return 0
    say("job {}, attempt {}, on {}: train.sft {}".format(job.id, job.restarts, job.node_list, " ".join(words)))
    submission.say_changes(here)
    steps = launching.Steps(inside, signals, job.cpus_per_task, bool(here.gpus_per_node))
    state = _Going(here, job, folders, signals)
    while True:
        attempt = Attempt(here, job, folders, steps, state)
        attempt.run(words)
        follows = decision.decide(state.facts(attempt))
        attempt.write_down(follows.said)
        code = _carry_out(follows, attempt, state)
        if code is not None:
            return code


def _described(inside, words):
    """Output folder, data and model, as train.sft itself reads them.

    Raises:
        Refusal: the run config cannot be used.
    """
    code, out, errors = inside.run(["python", "-c", DESCRIBE, *words])
    try:
        return json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        message = errors.strip() or "the run config could not be read: exit code {}".format(code)
        raise Refusal(message, 2 if code == 2 else 1) from None


def _carry_out(follows, attempt, state):
    """Do it; the exit code, or None where another attempt follows."""
    if follows.what == AGAIN:
        state.count(attempt)
        say("{}: {}".format(attempt.words, follows.said))
        return None
    if follows.what == REQUEUE:
        return _requeue(follows, attempt, state)
    if follows.breaks_chain:
        chain.break_off(state.folders.output_dir, state.job)
    code = attempt.code if follows.code is None else follows.code
    say("{}: {}".format(attempt.words, follows.said))
    attempt.say_first_error()
    return code


def _requeue(follows, attempt, state):
    """Hand the job back to SLURM, which ends this script; 85 where it refuses."""
    code, _, errors = answers.ask("scontrol", "requeue", state.job.id)
    if code:
        say("{}: not requeued: SLURM refused: {}".format(attempt.words, errors.strip() or code))
        attempt.say_first_error()
        attempt.write_down("not requeued: SLURM refused")
        return decision.PREEMPTED_CODE if attempt.ended in decision.STOPPED else attempt.code or 1
    limit = state.here.number("MAX_RESTARTS")
    say("{}: {}: restart {} of at most {}".format(attempt.words, follows.said, state.job.restarts + 1, limit))
    if state.excluded:
        state.exclude()
    return follows.code


class _Going:
    """What holds over the attempts of a job.

    Attributes:
        excluded: names of nodes that are not to be used again.
    """

    def __init__(self, here, job, folders, signals):
        self.here, self.job, self.folders, self.signals = here, job, folders, signals
        self.excluded = []
        self._began = time.monotonic()
        self._failures = 0  # in a row, without a new checkpoint
        self.ports_lost = 0

    def count(self, attempt):
        """Before another attempt."""
        self._failures = 0 if attempt.progress else self._failures + (attempt.ended == decision.FAILED)
        self.ports_lost += attempt.ended == decision.PORT_TAKEN

    def leave_out(self, name, why):
        """From now on."""
        if name not in self.excluded:
            self.excluded.append(name)
            say("node {} is left out from now on: {}".format(name, why))

    def facts(self, attempt):
        """For the decision."""
        is_last = self.job.chain_index >= self.here.number("CHAIN")
        return decision.Facts(
            ended=attempt.ended,
            slurm=attempt.slurm,
            asked=bool(self.signals.first),
            batch=self.job.is_batch,
            chain=self.job.in_chain and not is_last,
            last_of_chain=self.job.in_chain and is_last,
            restarts_left=self.here.number("MAX_RESTARTS") - self.job.restarts,
            failures_left=self.here.number("MAX_FAILURES") - 1 - self._failures,
            progress=attempt.progress,
            stale=self.job.restarts > 0 and time.monotonic() - self._began < _LATE_SIGNALS,
            spare=bool(attempt.lost) and len(self.fit_nodes()) >= self.here.number("NODES"),
            others=self._others(),
        )

    def fit_nodes(self):
        """Names of the allocation's nodes that may be used."""
        return [name for name in self.job.nodes if name not in self.excluded]

    def _others(self):
        """Whether the partition has enough nodes without those: a job that cannot start would wait for ever."""
        if not self.excluded or len(self.excluded) >= len(self.job.nodes) > 1:
            return False
        _, names, _ = answers.ask("sinfo", "--noheader", "--Node", "--format", "%N", "--partition", self.job.partition)
        return len(set(names.split()) - set(self.excluded)) >= len(self.job.nodes)

    def exclude(self):
        """Tell SLURM, which takes it only of a job that waits: after the requeue, before it ends this script."""
        _, job = answers.show_job(self.job.id)
        names = ",".join([*answers.excluded_nodes(job), *self.excluded])
        code, _, errors = answers.ask("scontrol", "update", "JobId=" + self.job.id, "ExcNodeList=" + names)
        say("excluded from this job: {}".format(names) if not code else "not excluded: {}".format(errors.strip()))
