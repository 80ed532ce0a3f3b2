"""What an evaluation job goes through: lm-evaluation-harness asks an export, on one node.

Everything after the script's name goes to train.evaluate, which records results when all are there: after a failure, or
a kill, it is submitted again. `--use_cache` of the harness keeps the answers of a job that was cut off.
"""

import os
import socket

from slurm.jobs import environment, site, submission
from slurm.jobs.prepare_job import run_step
from slurm.jobs.words import Refusal, flag, say


def main(words):
    """The exit code of the evaluation."""
    here = site.Site()
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    if not cpus:
        raise Refusal("submit this file with slurm/submit.sh or sbatch, do not run it")
    site.check(here)
    inside = environment.enter(here)
    inside.variables.setdefault("OMP_NUM_THREADS", str(max(1, int(cpus) // here.evaluation_gpus)))
    words = _with_processes(here, words)
    job, restarts = os.environ.get("SLURM_JOB_ID", "?"), os.environ.get("SLURM_RESTART_COUNT", "0")
    say("job {}, attempt {}, on {}: train.evaluate {}".format(job, restarts, socket.gethostname(), " ".join(words)))
    submission.say_changes(here)
    code = run_step(inside, ["python", "-m", "train.evaluate", *words], cpus)
    if code:
        say("the evaluation failed with exit code {}: see above, then submit the same command again".format(code))
    return code


def _with_processes(here, words):
    """A copy of the model on each GPU, unless the arguments say otherwise."""
    if flag("--num_processes", words) is not None or here.evaluation_gpus == 1:
        return words
    return ["--num_processes", str(here.evaluation_gpus), *words]
