#!/bin/bash
# Submit prepare.sbatch or train.sbatch with the values of env.sh: #SBATCH lines expand nothing and cannot hold them.
#
#   slurm/submit.sh [--dry-run] prepare --recipe configs/data/X.yaml --output DIR
#   slurm/submit.sh [--dry-run] train --config configs/train/X.yaml [--any_option value]
#   slurm/submit.sh [--dry-run] prepare … then train …      the second starts once the first has succeeded
#
# Prints one line for each job: its stage and its id. --dry-run prints the sbatch commands instead.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
. slurm/env.sh

usage() { sed -n '4,8s/^# \{0,1\}//p' slurm/submit.sh; }

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
    train)
      [ -z "$PACKHAUL_PARTITION" ] || options+=(--partition="$PACKHAUL_PARTITION")
      [ "$PACKHAUL_GPUS_PER_NODE" = 0 ] || options+=(--gpus-per-node="$PACKHAUL_GPUS_PER_NODE")
      options+=(--nodes="$PACKHAUL_NODES" --cpus-per-task="$PACKHAUL_CPUS_PER_TASK" --mem="$PACKHAUL_MEMORY")
      options+=(--time="$PACKHAUL_TIME" --signal="B:USR1@$PACKHAUL_SIGNAL_SECONDS")
      ;;
    *) die "there is no stage '$1': prepare or train$(printf '\n%s' "$(usage)")" ;;
  esac
}

# check_stage STAGE ARGS...: the file that its first flag names is there; better said now than by a job in some hours.
check_stage() {
  local flag=--config value=''
  [ "$1" != prepare ] || flag=--recipe
  while [ $# -gt 0 ]; do
    case $1 in
      "$flag") value=${2-} ;;
      "$flag"=*) value=${1#*=} ;;
    esac
    shift
  done
  [ -n "$value" ] || die "$flag FILE is missing$(printf '\n%s' "$(usage)")"
  [ -f "$value" ] || die "$flag: there is no file $value in $PWD"
}

# submit_stage STAGE ARGS...: after the job submitted before, if any (`previous`); if that fails this one is cancelled.
submit_stage() {
  local stage=$1 command
  shift
  command=(sbatch --parsable "${options[@]}")
  [ -z "$previous" ] || command+=(--dependency=afterok:"$previous" --kill-on-invalid-dep=yes)
  command+=("slurm/$stage.sbatch" "$@")
  if [ "$dry_run" = yes ]; then
    printf '%q ' "${command[@]}"
    echo
    previous="ID_OF_$stage"
  else
    previous=$("${command[@]}")
    previous=${previous%%;*}  # "id;cluster" where there are several
    echo "$stage $previous"
  fi
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
  local dry_run=no previous=''
  case ${1-} in
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit 0 ;;
  esac
  check_site
  for_each_stage check_stage "$@"  # all of them, before the first is submitted
  for_each_stage submit_stage "$@"
}

main "$@"
