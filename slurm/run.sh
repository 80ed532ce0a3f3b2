#!/bin/bash
# Train within an allocation that you hold (salloc, an interactive job), as slurm/train.sbatch does; for debugging:
#   salloc --nodes=2 --gpus-per-node=8 …, then        slurm/run.sh --config configs/train/X.yaml [--any_option value]
# Nothing is requeued, and Ctrl-C saves a checkpoint. It must be as large as slurm/env.sh says: PACKHAUL_NODES=… wins.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
# Of a job that this shell may be in: what that one was submitted with is nothing to this one.
unset PACKHAUL_SUBMISSION PACKHAUL_CHAIN_INDEX PACKHAUL_CHAIN_BEFORE PACKHAUL_HERE
. slurm/env.sh
export PACKHAUL_HERE=1
exec "$PACKHAUL_PYTHON" -E -m slurm.jobs train "$@"
