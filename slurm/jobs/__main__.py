"""Entry: what submit.sh and the job scripts of slurm/ start, with the cluster's own python3.

python3 -m slurm.jobs submit [--dry-run] STAGE ...       slurm/submit.sh
python3 -m slurm.jobs train|prepare|export|evaluate ...  slurm/*.sbatch; slurm/run.sh within an allocation
"""

import sys

from slurm.jobs import evaluate_job, export_job, prepare_job, submit, train_job
from slurm.jobs.words import Refusal, complain

PROGRAMS = {
    "submit": submit.main,
    "train": train_job.main,
    "prepare": prepare_job.main,
    "export": export_job.main,
    "evaluate": evaluate_job.main,
}


def main(words):
    """The exit code of the program that the first word names."""
    if not words or words[0] not in PROGRAMS:
        print((__doc__ or "").strip())
        return 1
    try:
        return PROGRAMS[words[0]](words[1:])
    except Refusal as refusal:
        complain(refusal)
        return refusal.code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
