"""A job that runs one command on one node, and is submitted again after a failure or a kill: export, evaluation."""

import os
import socket

from slurm.jobs import environment, site, submission
from slurm.jobs.prepare_job import how_it_ended, run_step
from slurm.jobs.words import Refusal, say


def run(module, name, here, words, processes=1):
    """Run `python -m module words` in the job's environment; its exit code.

    Args:
        name: of what the job does, for its lines.
        here: the site's settings.
        processes: that share the job's CPUs.
    """
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    if not cpus:
        raise Refusal("submit this file with slurm/submit.sh or sbatch, do not run it")
    site.check(here)
    inside = environment.enter(here)
    inside.variables.setdefault("OMP_NUM_THREADS", str(max(1, int(cpus) // processes)))
    job, restarts = os.environ.get("SLURM_JOB_ID", "?"), os.environ.get("SLURM_RESTART_COUNT", "0")
    say("job {}, attempt {}, on {}: {} {}".format(job, restarts, socket.gethostname(), module, " ".join(words)))
    submission.say_changes(here)
    code = run_step(inside, ["python", "-m", module, *words], cpus)
    if code:
        say("{} {}: see above, then submit the same command again".format(name, how_it_ended(code)))
    return code
