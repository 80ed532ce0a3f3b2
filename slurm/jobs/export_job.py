"""What an export job goes through: a run or a checkpoint becomes a Hugging Face folder, without GPU.

Everything after the script's name goes to train.export, which writes under another name and renames last: after a
failure, or a kill, it is submitted again.
"""

import os
import socket

from slurm.jobs import environment, site, submission
from slurm.jobs.prepare_job import run_step
from slurm.jobs.words import Refusal, say


def main(words):
    """The exit code of the export."""
    here = site.Site()
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    if not cpus:
        raise Refusal("submit this file with slurm/submit.sh or sbatch, do not run it")
    site.check(here)
    inside = environment.enter(here)
    inside.variables.setdefault("OMP_NUM_THREADS", cpus)
    job, restarts = os.environ.get("SLURM_JOB_ID", "?"), os.environ.get("SLURM_RESTART_COUNT", "0")
    say("job {}, attempt {}, on {}: train.export {}".format(job, restarts, socket.gethostname(), " ".join(words)))
    submission.say_changes(here)
    code = run_step(inside, ["python", "-m", "train.export", *words], cpus)
    if code:
        say("export failed with exit code {}: see above, then submit the same command again".format(code))
    return code
