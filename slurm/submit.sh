#!/bin/bash
# Submit prepare, train or export.sbatch with the values of env.sh: #SBATCH lines expand nothing and cannot hold them.
#
#   slurm/submit.sh [--dry-run] prepare --recipe configs/data/X.yaml --output DIR
#   slurm/submit.sh [--dry-run] train --config configs/train/X.yaml [--any_option value]
#   slurm/submit.sh [--dry-run] export --checkpoint RUN_DIR --output DIR
#   slurm/submit.sh [--dry-run] prepare … then train … then export …   each starts once the one before has succeeded
#
# With PACKHAUL_PREPARE_TASKS above 1, prepare is four jobs, each after the one before: tokenize (a job array), plan,
# pack (a job array), finish. Submitted again they skip what is done. After a failure, only what is missing:
#   slurm/submit.sh prepare --from pack --array 2,5 --recipe … --output …      tasks 2 and 5 of pack, then finish
#
# Prints one line for each job: its stage and its id. --dry-run prints the sbatch commands instead, and in comments the
# scripts that they submit, so that its output can be run.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. slurm/env.sh

readonly PREPARE_STAGES='tokenize plan pack finish'

usage() { sed -n '4,11s/^# \{0,1\}//p' slurm/submit.sh; }

# stage_options STAGE: set `options`, what this stage asks of SLURM.
stage_options() {
  options=()
  [ -z "$PACKHAUL_ACCOUNT" ] || options+=(--account="$PACKHAUL_ACCOUNT")
  # shellcheck disable=SC2206  # several options in one string
  options+=($PACKHAUL_SBATCH_OPTIONS)
  case $1 in
    prepare)
      [ -z "$PACKHAUL_PREPARE_PARTITION" ] || options+=(--partition="$PACKHAUL_PREPARE_PARTITION")
      options+=(--cpus-per-task="$PACKHAUL_PREPARE_CPUS" --mem="$PACKHAUL_PREPARE_MEMORY")
      options+=(--time="$PACKHAUL_PREPARE_TIME")
      ;;
    export)
      [ -z "$PACKHAUL_PREPARE_PARTITION" ] || options+=(--partition="$PACKHAUL_PREPARE_PARTITION")
      options+=(--cpus-per-task="$PACKHAUL_PREPARE_CPUS" --mem="$PACKHAUL_EXPORT_MEMORY")
      options+=(--time="$PACKHAUL_PREPARE_TIME")
      ;;
    train)
      [ -z "$PACKHAUL_PARTITION" ] || options+=(--partition="$PACKHAUL_PARTITION")
      [ "$PACKHAUL_GPUS_PER_NODE" = 0 ] || options+=(--gpus-per-node="$PACKHAUL_GPUS_PER_NODE")
      options+=(--nodes="$PACKHAUL_NODES" --cpus-per-task="$PACKHAUL_CPUS_PER_TASK" --mem="$PACKHAUL_MEMORY")
      options+=(--time="$PACKHAUL_TIME" --signal="B:USR1@$PACKHAUL_SIGNAL_SECONDS")
      ;;
    *) die "there is no stage '$1': prepare, train or export$(printf '\n%s' "$(usage)")" ;;
  esac
}

# flag NAME ARGS...: print what follows NAME, as `NAME value` or `NAME=value`; fail where it is not given.
flag() {
  local name=$1 found=1 value=''
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      "$name") value=${2-} found=0 ;;
      "$name"=*) value=${1#*=} found=0 ;;
    esac
    shift
  done
  printf '%s' "$value"
  return $found
}

# check_stage STAGE ARGS...: the file that its first flag names is there; better said now than by a job in some hours.
check_stage() {
  local name=--config value
  if [ "$1" = export ]; then
    for name in --checkpoint --output; do
      [ -n "$(flag "$name" "$@" || :)" ] || die "$name DIR is missing$(printf '\n%s' "$(usage)")"
    done
    return 0
  fi
  [ "$1" != prepare ] || { name=--recipe && check_chain "$@"; }
  value=$(flag "$name" "$@") || :
  [ -n "$value" ] || die "$name FILE is missing$(printf '\n%s' "$(usage)")"
  [ -f "$value" ] || die "$name: there is no file $value in $PWD"
}

# check_chain ARGS...: the flags that pick a part of the chain name one, and nobody else sets what the chain sets.
check_chain() {
  local from array name
  if [ "$PACKHAUL_PREPARE_TASKS" = 1 ]; then
    for name in --from --array; do
      ! flag "$name" "$@" >/dev/null || die "$name picks a part of a chain, but PACKHAUL_PREPARE_TASKS is 1: one job"
    done
    return 0
  fi
  for name in --stage --task-index --num-tasks; do
    ! flag "$name" "$@" >/dev/null || die "$name is set for each job of the chain; --from and --array pick a part of it"
  done
  from=$(flag --from "$@") || from=tokenize
  [[ " $PREPARE_STAGES " == *" $from "* ]] || die "--from: there is no stage '$from': one of $PREPARE_STAGES"
  array=$(flag --array "$@") || return 0
  [[ $from == tokenize || $from == pack ]] || die "--array picks tasks of --from tokenize or pack; $from is one job"
  [[ $array =~ ^[0-9]+([,-][0-9]+)*$ ]] || die "--array must look like 2 or 0,4-6, found '$array'"
}

# submit STAGE SBATCH_ARGS...: after the job submitted before, if any (`previous`); if that fails this is cancelled.
submit() {
  local stage=$1 command=(sbatch --parsable "${options[@]}") after="${previous:+afterok:$previous}$also_after"
  shift
  [ -z "$after" ] || command+=(--dependency="${after#,}")
  [ -z "$previous" ] || command+=(--kill-on-invalid-dep=yes)
  command+=("$@")
  if [ "$dry_run" = yes ]; then
    printf '%q ' "${command[@]}"
    echo
    previous="ID_OF_$stage"
    scripts+=$'\n'"$(printf '%s\n' "$@" | grep -m 1 '^slurm/.*\.sbatch$')"
  else
    previous=$("${command[@]}") || die "sbatch refused $stage; the jobs named above are in the queue"
    previous=${previous%%;*}  # "id;cluster" where there are several
    echo "$stage $previous"
  fi
}

# submit_stage STAGE ARGS...: one job, or the chain of a preparation in tasks.
submit_stage() {
  local stage=$1
  shift
  if [ "$stage" = prepare ] && [ "$PACKHAUL_PREPARE_TASKS" -gt 1 ]; then
    submit_chain "$@"
  elif [ "$stage" = train ] && [ "$PACKHAUL_CHAIN" -gt 1 ]; then
    submit_attempts "$@"
  else
    submit "$stage" "slurm/$stage.sbatch" "$@"
  fi
}

# submit_attempts ARGS...: the jobs of a training that may not be requeued. They bear one name, and SLURM runs one job of a
# name at a time; each goes on where the last one saved, and has nothing to do if that one has finished or failed.
submit_attempts() {
  local index first=$previous name also_after=,singleton
  name=$(flag --config "$@") name=packhaul-$(basename "${name%.*}")
  for ((index = 1; index <= PACKHAUL_CHAIN; index++)); do
    previous=$first
    submit train --job-name="$name" --export="ALL,PACKHAUL_CHAIN_INDEX=$index" slurm/train.sbatch "$@"
  done
}

# submit_chain ARGS...: the array's tasks get their number from SLURM (prepare.sbatch), all else is said here.
submit_chain() {
  local from array stage throttle='' rest=()
  from=$(flag --from "$@") || from=tokenize
  array=$(flag --array "$@") || array=0-$((PACKHAUL_PREPARE_TASKS - 1))
  [ "$PACKHAUL_PREPARE_AT_ONCE" = 0 ] || throttle=%$PACKHAUL_PREPARE_AT_ONCE
  while [ $# -gt 0 ]; do
    case $1 in
      --from | --array) shift ;;
      --from=* | --array=*) ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
  for stage in "$from" ${PREPARE_STAGES#*"$from"}; do
    case $stage in
      tokenize | pack)
        submit "$stage" --job-name="packhaul-$stage" --array="$array$throttle" --output=slurm/logs/%x-%A_%a.out \
          slurm/prepare.sbatch --stage "$stage" --num-tasks "$PACKHAUL_PREPARE_TASKS" "${rest[@]}"
        ;;
      *) submit "$stage" --job-name="packhaul-$stage" slurm/prepare.sbatch --stage "$stage" "${rest[@]}" ;;
    esac
    array=0-$((PACKHAUL_PREPARE_TASKS - 1))  # --array is for the first
  done
}

# for_each_stage FUNCTION STAGE ARGS... [then STAGE ARGS...]...
for_each_stage() {
  local function=$1 stage=() options word
  shift
  for word in "$@" 'then'; do
    if [ "$word" = 'then' ]; then
      stage_options "${stage[0]-}"  # refuses an unknown stage
      "$function" "${stage[@]}"
      stage=()
    else
      stage+=("$word")
    fi
  done
}

main() {
  local dry_run=no previous='' also_after='' scripts='' script
  case ${1-} in
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
  esac
  check_site
  for_each_stage check_stage "$@"  # all of them, before the first is submitted
  for_each_stage submit_stage "$@"
  for script in $(printf '%s' "$scripts" | sort -u); do
    echo "# --- $script, which reads slurm/env.sh ---"
    sed 's/^/# /' "$script"
  done
}

main "$@"
