# shellcheck shell=bash
# What differs from site to site: change the lines marked EDIT, and no other file of this folder.
#
# submit.sh reads this file on the login node, hands the values to sbatch, and keeps a copy of them for the jobs. A variable
# that is set already wins, so one run can differ without an edit:
#   PACKHAUL_NODES=4 slurm/submit.sh train --config configs/train/X.yaml
# An empty value is not sent to SLURM. Where a variable holds several words, quotes keep blanks within one: ". '/my data'".
# Paths are relative to the repository root, where all jobs are submitted and run.

# --- where and how large ---
export PACKHAUL_ACCOUNT="${PACKHAUL_ACCOUNT-}"                # EDIT: --account; empty where the site needs none
export PACKHAUL_PARTITION="${PACKHAUL_PARTITION-}"            # EDIT: --partition of training; empty: the default
export PACKHAUL_NODES="${PACKHAUL_NODES:-1}"                  # EDIT: nodes of a training job
export PACKHAUL_SPARE_NODES="${PACKHAUL_SPARE_NODES:-0}"      # nodes besides, which take the place of unfit ones
export PACKHAUL_GPUS_PER_NODE="${PACKHAUL_GPUS_PER_NODE-8}"   # EDIT: GPUs in each node, 8 or h100:8; 0 trains on the CPU
# EDIT where there are no GPUs: training processes in each node; empty: one for each GPU.
export PACKHAUL_PROCS_PER_NODE="${PACKHAUL_PROCS_PER_NODE-}"
export PACKHAUL_GPU_KIND="${PACKHAUL_GPU_KIND:-nvidia}"       # EDIT: nvidia or amd
export PACKHAUL_CPUS_PER_TASK="${PACKHAUL_CPUS_PER_TASK:-64}" # EDIT: CPUs of each node, for all its processes together
export PACKHAUL_MEMORY="${PACKHAUL_MEMORY-0}"                 # EDIT: --mem for each node; 0 is all of it
export PACKHAUL_TIME="${PACKHAUL_TIME-24:00:00}"              # EDIT: --time of one attempt (DD-HH:MM:SS)
export PACKHAUL_SBATCH_OPTIONS="${PACKHAUL_SBATCH_OPTIONS-}"  # EDIT: more options for sbatch: --qos=… --constraint=…

# --- data preparation: no GPU, one node for each task ---
# With 2 tasks or more it is a chain of jobs: tokenize (a job array) -> plan -> pack (a job array) -> finish.
export PACKHAUL_PREPARE_TASKS="${PACKHAUL_PREPARE_TASKS:-1}"         # EDIT: tasks of the job arrays; 1: one job in all
export PACKHAUL_PREPARE_AT_ONCE="${PACKHAUL_PREPARE_AT_ONCE:-0}"     # EDIT: how many of them may run at once; 0: all
export PACKHAUL_PREPARE_ACCOUNT="${PACKHAUL_PREPARE_ACCOUNT-$PACKHAUL_ACCOUNT}"        # EDIT: --account
export PACKHAUL_PREPARE_PARTITION="${PACKHAUL_PREPARE_PARTITION-$PACKHAUL_PARTITION}"  # EDIT: a CPU partition
export PACKHAUL_PREPARE_CPUS="${PACKHAUL_PREPARE_CPUS:-16}"          # EDIT: CPUs of a task, one worker process on each
export PACKHAUL_PREPARE_MEMORY="${PACKHAUL_PREPARE_MEMORY-32G}"      # EDIT: --mem of a task
export PACKHAUL_PREPARE_TIME="${PACKHAUL_PREPARE_TIME-04:00:00}"     # EDIT: --time of a task
export PACKHAUL_PREPARE_OPTIONS="${PACKHAUL_PREPARE_OPTIONS-$PACKHAUL_SBATCH_OPTIONS}" # EDIT: more options for sbatch

# --- export: no GPU, one node ---
export PACKHAUL_EXPORT_ACCOUNT="${PACKHAUL_EXPORT_ACCOUNT-$PACKHAUL_PREPARE_ACCOUNT}"        # EDIT: --account
export PACKHAUL_EXPORT_PARTITION="${PACKHAUL_EXPORT_PARTITION-$PACKHAUL_PREPARE_PARTITION}"  # EDIT: a CPU partition
export PACKHAUL_EXPORT_CPUS="${PACKHAUL_EXPORT_CPUS:-$PACKHAUL_PREPARE_CPUS}"                # EDIT: CPUs
export PACKHAUL_EXPORT_MEMORY="${PACKHAUL_EXPORT_MEMORY-128G}"       # EDIT: --mem: the model in fp32, twice
export PACKHAUL_EXPORT_TIME="${PACKHAUL_EXPORT_TIME-$PACKHAUL_PREPARE_TIME}"                 # EDIT: --time
export PACKHAUL_EXPORT_OPTIONS="${PACKHAUL_EXPORT_OPTIONS-$PACKHAUL_PREPARE_OPTIONS}"        # EDIT: more options

# --- evaluation: one node with GPUs ---
export PACKHAUL_EVALUATE_ACCOUNT="${PACKHAUL_EVALUATE_ACCOUNT-$PACKHAUL_ACCOUNT}"            # EDIT: --account
export PACKHAUL_EVALUATE_PARTITION="${PACKHAUL_EVALUATE_PARTITION-$PACKHAUL_PARTITION}"      # EDIT: --partition
export PACKHAUL_EVALUATE_GPUS="${PACKHAUL_EVALUATE_GPUS-1}"          # EDIT: GPUs, 1 or h100:1; 0 evaluates on the CPU
export PACKHAUL_EVALUATE_CPUS="${PACKHAUL_EVALUATE_CPUS:-8}"         # EDIT: CPUs
export PACKHAUL_EVALUATE_MEMORY="${PACKHAUL_EVALUATE_MEMORY-64G}"    # EDIT: --mem
export PACKHAUL_EVALUATE_TIME="${PACKHAUL_EVALUATE_TIME-08:00:00}"   # EDIT: --time
export PACKHAUL_EVALUATE_OPTIONS="${PACKHAUL_EVALUATE_OPTIONS-$PACKHAUL_SBATCH_OPTIONS}"     # EDIT: more options

# --- time limit and preemption ---
# The signal must leave time for the step in progress and for saving a checkpoint, with margin; SLURM may send it up to
# 60 s early. A time limit shorter than this plus start-up would save before the first step is done.
export PACKHAUL_SIGNAL_SECONDS="${PACKHAUL_SIGNAL_SECONDS:-300}"     # EDIT: seconds between the signal and the limit
export PACKHAUL_MAX_RESTARTS="${PACKHAUL_MAX_RESTARTS:-50}"          # most requeues of a preempted job
# A training that fails after it has saved a checkpoint starts again in the same job; this many failures in a row without
# a new checkpoint end the job.
export PACKHAUL_MAX_FAILURES="${PACKHAUL_MAX_FAILURES:-1}"
# Where jobs may not be requeued: the number of jobs to submit at once; each goes on where the one before it saved.
export PACKHAUL_CHAIN="${PACKHAUL_CHAIN:-1}"                         # EDIT: jobs of a training; 1: one, requeued

# --- software ---
export PACKHAUL_PYTHON="${PACKHAUL_PYTHON:-python3}"          # the cluster's own, 3.6 or later: it runs slurm/jobs
# submit.sh checks recipes and runs in the environment, on the login node, before it submits. 0: it does not.
export PACKHAUL_CHECK_SUBMISSION="${PACKHAUL_CHECK_SUBMISSION:-1}"
export PACKHAUL_MODULES="${PACKHAUL_MODULES-}"                # EDIT: modules to load, e.g. "gcc/13 cuda/12.8"
export PACKHAUL_VENV="${PACKHAUL_VENV:-.venv}"                # EDIT: the folder with packhaul's packages: venv or conda
# Or a container with them, and then no environment: a .sif file or docker://… for apptainer; for pyxis (a plugin of srun,
# with enroot) a .sqsh file or user/image:tag. The repository and PACKHAUL_SHARED_DIRS are mounted; name others here.
export PACKHAUL_CONTAINER="${PACKHAUL_CONTAINER-}"            # EDIT: the image; empty: no container
export PACKHAUL_CONTAINER_RUNTIME="${PACKHAUL_CONTAINER_RUNTIME:-apptainer}"  # EDIT: apptainer, singularity or pyxis
export PACKHAUL_CONTAINER_MOUNTS="${PACKHAUL_CONTAINER_MOUNTS-}"  # EDIT: more folders to mount, under the same path
export PACKHAUL_ACCELERATE_CONFIG="${PACKHAUL_ACCELERATE_CONFIG:-zero3_multinode}"  # EDIT: configs/accelerate/NAME.yaml

# --- shared file system ---
# The folders that recipes and run configs name must be the same on every node: jobs check these before training.
export PACKHAUL_SHARED_DIRS="${PACKHAUL_SHARED_DIRS:-.}"      # EDIT: data and run folders, e.g. ". /scratch/me/runs"
# Before training every node is checked: GPUs, driver, free space, clock, network (a few seconds). 0: it is not.
export PACKHAUL_CHECK_NODES="${PACKHAUL_CHECK_NODES:-1}"
export PACKHAUL_MIN_FREE_GIB="${PACKHAUL_MIN_FREE_GIB:-20}"   # EDIT: free space that each shared folder must have
export PACKHAUL_MIN_ALLREDUCE_GBPS="${PACKHAUL_MIN_ALLREDUCE_GBPS:-0}"  # EDIT: GB/s of a sum over all; 0: any
export PACKHAUL_MIN_GPU_SPEED="${PACKHAUL_MIN_GPU_SPEED:-0.85}"  # of the median GPU's; a slower one is unfit
HF_HOME="${HF_HOME-}"                                         # EDIT: cache of the hub; empty: in your home
TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR-}"               # EDIT: DeepSpeed's compiled code; empty: in your home

# --- network ---
# The interface between the nodes (see `ip -br address`). Without it NCCL and Gloo guess; a wrong guess hangs at start.
# NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME are set from it. All others pass through from your shell, or from here:
#   NCCL_DEBUG=INFO           what NCCL chose: look for "NET/IB" (InfiniBand, RoCE); "NET/Socket" is many times slower
#   NCCL_IB_HCA=mlx5_0,mlx5_1 which cards; NCCL_IB_GID_INDEX=3 on many RoCE networks; NCCL_IB_DISABLE=1 to try without
#   NCCL_IB_TIMEOUT=22        on large fabrics, where a congested one is taken for a dead one
# How long a process waits for the others is ddp_timeout in the run configuration.
export PACKHAUL_NETWORK_INTERFACE="${PACKHAUL_NETWORK_INTERFACE-}"   # EDIT: e.g. ib0 or eth0; empty: let them guess
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"                  # EDIT: 0 where compute nodes reach the hub
export WANDB_MODE="${WANDB_MODE:-offline}"                    # EDIT: online where compute nodes reach W&B

if [ -n "$PACKHAUL_NETWORK_INTERFACE" ]; then
  export NCCL_SOCKET_IFNAME="$PACKHAUL_NETWORK_INTERFACE" GLOO_SOCKET_IFNAME="$PACKHAUL_NETWORK_INTERFACE"
fi
for name in HF_HOME TORCH_EXTENSIONS_DIR; do
  if [ -n "${!name}" ]; then export "${name?}"; else unset "$name"; fi
done

# activate: modules, then the environment; a container needs none. Only a shell can do this: slurm/jobs takes over what
# it sets. The modules' scripts are not written for `set -u`.
activate() {
  local script
  if [ -n "$PACKHAUL_MODULES" ]; then
    # A batch script is no login shell: the module command may have to be defined first.
    for script in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh; do
      # shellcheck disable=SC1090  # files of the site
      command -v module >/dev/null || { [ ! -r "$script" ] || . "$script"; }
    done
    command -v module >/dev/null || { echo "PACKHAUL_MODULES is set, but this node has no module command: $(hostname)" >&2; return 1; }
    # shellcheck disable=SC2086  # several names
    module load $PACKHAUL_MODULES || { echo "module load $PACKHAUL_MODULES failed on $(hostname)" >&2; return 1; }
  fi
  [ -z "$PACKHAUL_CONTAINER" ] || return 0
  if [ -f "$PACKHAUL_VENV/bin/activate" ]; then
    # shellcheck disable=SC1091  # made by the user
    . "$PACKHAUL_VENV/bin/activate"
    return
  fi
  # A conda environment: what `conda activate` does, without conda.
  CONDA_PREFIX=$(readlink -f "$PACKHAUL_VENV")
  export CONDA_PREFIX PATH="$CONDA_PREFIX/bin:$PATH"
  for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    # shellcheck disable=SC1090  # of its packages
    [ ! -r "$script" ] || . "$script"
  done
}
