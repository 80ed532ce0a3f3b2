# shellcheck shell=bash
# What differs from site to site: change the lines marked EDIT, and no other file of this folder.
#
# submit.sh reads this file on the login node and hands the values to sbatch; the job scripts read it again on the
# compute node. A variable that is set already wins, so one run can differ without an edit:
#   PACKHAUL_NODES=4 slurm/submit.sh train --config configs/train/X.yaml
# Paths are relative to the repository root, where all jobs are submitted and run.

# --- where and how large ---
export PACKHAUL_ACCOUNT="${PACKHAUL_ACCOUNT-}"                # EDIT: --account; empty where the site needs none
export PACKHAUL_PARTITION="${PACKHAUL_PARTITION-}"            # EDIT: --partition of training; empty: the default
export PACKHAUL_NODES="${PACKHAUL_NODES:-1}"                  # EDIT: nodes of a training job
export PACKHAUL_GPUS_PER_NODE="${PACKHAUL_GPUS_PER_NODE:-8}"  # EDIT: GPUs in each node; 0 trains on the CPU
export PACKHAUL_PROCS_PER_NODE="${PACKHAUL_PROCS_PER_NODE:-$PACKHAUL_GPUS_PER_NODE}"  # training processes in each node
export PACKHAUL_CPUS_PER_TASK="${PACKHAUL_CPUS_PER_TASK:-64}" # EDIT: CPUs of each node, for all its processes together
export PACKHAUL_MEMORY="${PACKHAUL_MEMORY:-0}"                # EDIT: --mem for each node; 0 is all of it
export PACKHAUL_TIME="${PACKHAUL_TIME:-24:00:00}"             # EDIT: --time of one attempt (DD-HH:MM:SS)
export PACKHAUL_SBATCH_OPTIONS="${PACKHAUL_SBATCH_OPTIONS-}"  # EDIT: more options for sbatch: --qos=… --constraint=…

# --- data preparation: no GPU, one node for each task ---
# With 2 tasks or more it is a chain of jobs: tokenize (a job array) -> plan -> pack (a job array) -> finish.
export PACKHAUL_PREPARE_TASKS="${PACKHAUL_PREPARE_TASKS:-1}"         # EDIT: tasks of the job arrays; 1: one job in all
export PACKHAUL_PREPARE_AT_ONCE="${PACKHAUL_PREPARE_AT_ONCE:-0}"     # EDIT: how many of them may run at once; 0: all
export PACKHAUL_PREPARE_PARTITION="${PACKHAUL_PREPARE_PARTITION-$PACKHAUL_PARTITION}"  # EDIT: a CPU partition
export PACKHAUL_PREPARE_CPUS="${PACKHAUL_PREPARE_CPUS:-16}"          # EDIT: CPUs of a task, one worker process on each
export PACKHAUL_PREPARE_MEMORY="${PACKHAUL_PREPARE_MEMORY:-32G}"     # EDIT: --mem of a task
export PACKHAUL_EXPORT_MEMORY="${PACKHAUL_EXPORT_MEMORY:-128G}"      # EDIT: --mem of an export: the model in fp32, twice
export PACKHAUL_PREPARE_TIME="${PACKHAUL_PREPARE_TIME:-04:00:00}"    # EDIT: --time of a task

# --- time limit and preemption ---
# The signal must leave time for the step in progress and for saving a checkpoint, with margin; SLURM may send it up to
# 60 s early. A time limit shorter than this plus start-up would save before the first step is done.
export PACKHAUL_SIGNAL_SECONDS="${PACKHAUL_SIGNAL_SECONDS:-300}"     # EDIT: seconds between the signal and the limit
export PACKHAUL_MAX_RESTARTS="${PACKHAUL_MAX_RESTARTS:-50}"          # requeue a preempted job at most so many times
# Where jobs may not be requeued: submit so many at once, one after the other, each going on where the last one saved.
export PACKHAUL_CHAIN="${PACKHAUL_CHAIN:-1}"                         # EDIT: jobs of a training; 1: one, requeued

# --- software ---
export PACKHAUL_MODULES="${PACKHAUL_MODULES-}"                # EDIT: modules to load, e.g. "gcc/13 cuda/12.8"
export PACKHAUL_VENV="${PACKHAUL_VENV:-.venv}"                # EDIT: the virtual environment with packhaul's packages
# Or a container with them, and then no environment: a .sif file or docker://… for apptainer; for pyxis (a plugin of srun,
# with enroot) a .sqsh file or user/image:tag. The repository and PACKHAUL_SHARED_DIRS are mounted; name others here.
export PACKHAUL_CONTAINER="${PACKHAUL_CONTAINER-}"            # EDIT: the image; empty: no container
export PACKHAUL_CONTAINER_RUNTIME="${PACKHAUL_CONTAINER_RUNTIME:-apptainer}"  # EDIT: apptainer or pyxis
export PACKHAUL_CONTAINER_MOUNTS="${PACKHAUL_CONTAINER_MOUNTS-}"  # EDIT: more folders to mount, under the same path
export PACKHAUL_ACCELERATE_CONFIG="${PACKHAUL_ACCELERATE_CONFIG:-zero3_multinode}"  # EDIT: configs/accelerate/NAME.yaml

# --- shared file system ---
# The folders that recipes and run configs name must be the same on every node: jobs check these before training.
export PACKHAUL_SHARED_DIRS="${PACKHAUL_SHARED_DIRS:-.}"      # EDIT: data and run folders, e.g. ". /scratch/me/runs"
# Before training every node is looked at: GPUs, driver, free space, clock, network (a few seconds). 0 leaves it out.
export PACKHAUL_CHECK_NODES="${PACKHAUL_CHECK_NODES:-1}"
export PACKHAUL_MIN_FREE_GIB="${PACKHAUL_MIN_FREE_GIB:-20}"   # EDIT: free space that each shared folder must have
HF_HOME="${HF_HOME-}"                                         # EDIT: cache of the hub; empty: in your home
TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR-}"               # EDIT: DeepSpeed's compiled code; empty: in your home

# --- network ---
# The interface between the nodes (see `ip -br address`). Without it NCCL and Gloo guess; a wrong guess hangs at start.
# NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME are set from it. All others pass through from your shell, or from here:
#   NCCL_DEBUG=INFO           what NCCL chose: look for "NET/IB" (InfiniBand, RoCE); "NET/Socket" is many times slower
#   NCCL_IB_HCA=mlx5_0,mlx5_1 which cards; NCCL_IB_GID_INDEX=3 on many RoCE networks; NCCL_IB_DISABLE=1 to try without
#   NCCL_IB_TIMEOUT=22        on large fabrics, where a congested one is taken for a dead one
#   TORCH_NCCL_TRACE_BUFFER_SIZE=2000   which collective operation a process hangs in (torch's flight recorder)
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

say() { printf 'packhaul %(%F %T)T: %s\n' -1 "$*"; }  # no process that TERM could end
die() { echo "packhaul: $*" >&2; exit 1; }

# check_site: name everything that is missing or malformed above, then stop.
check_site() {
  local problems=() name
  for name in PACKHAUL_{NODES,PROCS_PER_NODE,CPUS_PER_TASK,PREPARE_TASKS,PREPARE_CPUS,SIGNAL_SECONDS,CHAIN}; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || problems+=("$name must be a whole number of 1 or more, found '${!name}'")
  done
  for name in PACKHAUL_{GPUS_PER_NODE,PREPARE_AT_ONCE,MAX_RESTARTS,CHECK_NODES,MIN_FREE_GIB}; do
    [[ ${!name} =~ ^[0-9]+$ ]] || problems+=("$name must be a whole number, found '${!name}'")
  done
  for name in PACKHAUL_TIME PACKHAUL_PREPARE_TIME; do
    [[ ${!name} =~ ^[0-9]+(-[0-9]+)?(:[0-9]+){0,2}$ ]] || problems+=("$name must look like 24:00:00, found '${!name}'")
  done
  [ -f "configs/accelerate/$PACKHAUL_ACCELERATE_CONFIG.yaml" ] ||
    problems+=("PACKHAUL_ACCELERATE_CONFIG: there is no configs/accelerate/$PACKHAUL_ACCELERATE_CONFIG.yaml")
  [ -n "$PACKHAUL_CONTAINER" ] || [ -f "$PACKHAUL_VENV/bin/activate" ] ||
    problems+=("PACKHAUL_VENV: there is no $PACKHAUL_VENV/bin/activate; make the environment or name another one")
  [[ $PACKHAUL_CONTAINER_RUNTIME =~ ^(apptainer|pyxis)$ ]] ||
    problems+=("PACKHAUL_CONTAINER_RUNTIME must be apptainer or pyxis, found '$PACKHAUL_CONTAINER_RUNTIME'")
  for name in $PACKHAUL_SHARED_DIRS; do
    [ -w "$name" ] || problems+=("PACKHAUL_SHARED_DIRS: $name is not a folder that you can write to")
  done
  [ ${#problems[@]} -gt 0 ] || check_counts
  [ ${#problems[@]} -eq 0 ] || die "slurm/env.sh cannot be used:$(printf '\n  - %s' "${problems[@]}")"
}

# check_counts: the numbers fit each other (adds to check_site's list).
check_counts() {
  local procs=$PACKHAUL_PROCS_PER_NODE gpus=$PACKHAUL_GPUS_PER_NODE cpus=$PACKHAUL_CPUS_PER_TASK
  [ "$gpus" -eq 0 ] || [ "$procs" -le "$gpus" ] ||
    problems+=("PACKHAUL_PROCS_PER_NODE: $procs processes cannot share $gpus GPUs (PACKHAUL_GPUS_PER_NODE)")
  [ "$cpus" -ge "$procs" ] ||
    problems+=("PACKHAUL_CPUS_PER_TASK: $cpus CPUs are less than one for each of $procs processes")
  # The signal would come at once, and every attempt would save after its first step.
  [ "$(seconds_of "$PACKHAUL_TIME")" -gt "$PACKHAUL_SIGNAL_SECONDS" ] ||
    problems+=("PACKHAUL_TIME: $PACKHAUL_TIME is no longer than PACKHAUL_SIGNAL_SECONDS=$PACKHAUL_SIGNAL_SECONDS")
}

# seconds_of TIME: of minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
seconds_of() {
  local days=0 rest=$1 parts
  [[ $1 != *-* ]] || { days=${1%%-*} rest=${1#*-}; }
  IFS=: read -ra parts <<<"$rest"
  case $1 in
    *-* | *:*:*) parts=("${parts[0]}" "${parts[1]-0}" "${parts[2]-0}") ;;
    *) parts=(0 "${parts[0]}" "${parts[1]-0}") ;;
  esac
  echo $((((10#$days * 24 + 10#${parts[0]}) * 60 + 10#${parts[1]}) * 60 + 10#${parts[2]}))
}

# activate: modules, then the virtual environment or the container. Sets `inside`, the words that run a command there, and
# `srun_flags`, which do so for srun. The modules' scripts are not written for `set -u`.
activate() {
  inside=() srun_flags=()
  set +u
  if [ -n "$PACKHAUL_MODULES" ]; then
    # A batch script is no login shell: the module command may have to be defined first.
    # shellcheck disable=SC1091  # files of the site
    command -v module >/dev/null || { [ ! -r /etc/profile.d/modules.sh ] || . /etc/profile.d/modules.sh; }
    # shellcheck disable=SC1091
    command -v module >/dev/null || { [ ! -r /etc/profile.d/lmod.sh ] || . /etc/profile.d/lmod.sh; }
    command -v module >/dev/null || die "PACKHAUL_MODULES is set, but this node has no module command: $(hostname)"
    # shellcheck disable=SC2086  # several names
    module load $PACKHAUL_MODULES || die "module load $PACKHAUL_MODULES failed on $(hostname)"
  fi
  # shellcheck disable=SC1091  # made by the user
  [ -n "$PACKHAUL_CONTAINER" ] || . "$PACKHAUL_VENV/bin/activate"
  set -u
  [ -z "$PACKHAUL_CONTAINER" ] || enter_container
}

# enter_container: see activate. A relative folder is mounted as the absolute one that it is.
enter_container() {
  local dir mounts=("$PWD")
  for dir in $PACKHAUL_SHARED_DIRS $PACKHAUL_CONTAINER_MOUNTS; do
    dir=$(readlink -f "$dir") || die "PACKHAUL_CONTAINER_MOUNTS: there is no folder $dir"
    [[ " ${mounts[*]} " == *" $dir "* ]] || mounts+=("$dir")
  done
  if [ "$PACKHAUL_CONTAINER_RUNTIME" = pyxis ]; then
    # On srun, not in #SBATCH lines: the batch script has to stay outside, where scontrol is.
    mounts=("${mounts[@]/*/&:&}")
    dir=$(IFS=,; echo "${mounts[*]}")
    srun_flags=(--container-image="$PACKHAUL_CONTAINER" --container-mounts="$dir" --container-workdir="$PWD")
  else
    command -v apptainer >/dev/null || die "PACKHAUL_CONTAINER is set, but this node has no apptainer: $(hostname)"
    inside=(apptainer exec --pwd "$PWD")
    [ "$PACKHAUL_GPUS_PER_NODE" = 0 ] || inside+=(--nv)
    for dir in "${mounts[@]}"; do inside+=(--bind "$dir"); done
    inside+=("$PACKHAUL_CONTAINER")
  fi
}

# in_environment COMMAND...: run it once, on this node.
in_environment() {
  if [ ${#srun_flags[@]} -gt 0 ]; then
    srun --nodes=1 --ntasks=1 "${srun_flags[@]}" "$@"
  else
    "${inside[@]}" "$@"
  fi
}
