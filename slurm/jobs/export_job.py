"""What an export job goes through: a run or a checkpoint becomes a Hugging Face folder, without GPU.

Everything after the script's name goes to train.export, which writes under another name and renames last: after a
failure, or a kill, it is submitted again.
"""

from slurm.jobs import one_step_job, site


def main(words):
    """The exit code of the export."""
    return one_step_job.run("train.export", "export", site.Site(), words)
