#!/bin/bash
# Submit prepare, train, export or evaluate.sbatch with the values of env.sh:
#   slurm/submit.sh --help
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# Of a job that this shell may be in: what that one was submitted with is nothing to this one.
unset PACKHAUL_SUBMISSION PACKHAUL_CHAIN_INDEX PACKHAUL_CHAIN_BEFORE PACKHAUL_HERE
. slurm/env.sh
exec "$PACKHAUL_PYTHON" -E -m slurm.jobs submit "$@"
