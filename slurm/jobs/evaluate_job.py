"""What an evaluation job goes through: lm-evaluation-harness asks an export, on one node.

Everything after the script's name goes to train.evaluate, which records results when all are there: after a failure, or
a kill, it is submitted again. `--use_cache` of the harness keeps the answers of a job that was cut off.
"""

from slurm.jobs import one_step_job, site
from slurm.jobs.words import flag


def main(words):
    """The exit code of the evaluation."""
    here = site.Site()
    gpus = here.evaluation_gpus
    return one_step_job.run("train.evaluate", "the evaluation", here, _with_processes(here, words), processes=gpus)


def _with_processes(here, words):
    """A copy of the model on each GPU, unless the arguments say otherwise."""
    if flag("--num_processes", words) is not None or here.evaluation_gpus == 1:
        return words
    return ["--num_processes", str(here.evaluation_gpus), *words]
