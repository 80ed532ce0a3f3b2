"""A chain of jobs (PACKHAUL_CHAIN): SLURM runs one at a time, and each goes on where the one before it saved.

After a failure of the training, or when a person has cancelled one, the others must not train; after a dead node they
must. Only the jobs themselves can tell these apart.
"""

import os

from slurm.jobs import answers
from slurm.jobs.words import Refusal, say

_BROKEN = ".chain-failed"
_BEGUN = ".chain-start"


def is_over(output_dir, job):
    """Whether an earlier job has finished the training.

    Raises:
        Refusal: an earlier job has failed, or was cancelled.
    """
    if not job.in_chain:
        return False
    broken, begun = os.path.join(output_dir, _BROKEN), os.path.join(output_dir, _BEGUN)
    if job.chain_index == 1 and job.restarts == 0:
        if os.path.exists(broken):
            os.remove(broken)
        _touch(begun)
    elif _was_cancelled(job.chain_before):
        _touch(broken)
    if os.path.exists(broken):
        raise Refusal("an earlier job of this chain has failed or was cancelled: see its log")
    if _is_newer(os.path.join(output_dir, "complete.json"), begun) and not _exists(output_dir, "preempted.json"):
        say("an earlier job of this chain has finished the training: {}".format(output_dir))
        return True
    return False


def break_off(output_dir, job):
    """The later jobs must not train."""
    if job.in_chain:
        _touch(os.path.join(output_dir, _BROKEN))


def _was_cancelled(job_id):
    """Whether a person has cancelled the job before: a job that was killed, or never started, leaves no mark."""
    if not job_id:
        return False
    code, out = answers.show_job(job_id)
    return code == 0 and answers.fields(out).get("JobState", "") == "CANCELLED"


def _exists(folder, name):
    return os.path.exists(os.path.join(folder, name))


def _is_newer(path, than):
    return os.path.exists(path) and (not os.path.exists(than) or os.stat(path).st_mtime > os.stat(than).st_mtime)


def _touch(path):
    with open(path, "a"):
        os.utime(path)  # to open an empty file does not always count as a change
