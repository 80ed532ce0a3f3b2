#!/bin/bash
# A real, throw-away SLURM cluster on one machine: a head with slurmctld and a few nodes with slurmd, each with its own
# network, hostname, processes and /dev/shm, on a private bridge. Needs root and Debian's packages slurmctld, slurmd,
# slurm-client and iproute2; no systemd, no munge, no service running.
#
#   slurm_lab.sh serve DIR      start it, print "ready PID" and keep it until stdin is closed; state and logs in DIR
#   nsenter -t PID -n -u -m -p -- COMMAND     run something on the head (with SLURM_CONF=DIR/slurm.conf)
#   slurm_lab.sh cut_node DIR I               on the head: a power failure of node I; start_node DIR I brings it back
#
# The whole cluster lives in one PID namespace whose init waits on stdin: when the caller ends, however it ends, the
# pipe closes, init exits, and the kernel kills every process and frees every interface of the cluster.
#
# Several slurmd in one network namespace would be simpler, but hides mistakes: MASTER_ADDR=localhost works there.
set -euo pipefail

NODES=${SLURM_LAB_NODES:-2}
CPUS=${SLURM_LAB_CPUS:-8}  # told to SLURM, however many there are
GPUS=${SLURM_LAB_GPUS:-2}  # names only, each is /dev/null
NETWORK=10.88.0            # never leaves the head's network namespace, so clusters side by side do not meet
SELF=$(readlink -f "$0")

address() { echo "$NETWORK.$((10 + $1))"; }
numbers() { seq "$NODES"; }

write_hosts() {
  printf '127.0.0.1 localhost\n%s.1 head\n' "$NETWORK"
  for i in $(numbers); do echo "$(address "$i") node$i"; done
}

# No authentication (one user, one machine), no accounting. JobRequeue=0: a template must ask with --requeue.
# The daemons come before other work (nice), and their jobs do not: on a busy machine a node that answers late would be
# taken for a lost one, and its jobs be requeued.
# AuthInfo=cred_expire is how long a requeued job waits before it starts again, and within which a step must start on
# its nodes: 120 s by default, 5 s at least, which a busy machine has taken for the start of a step.
write_slurm_conf() {
  cat <<CONF
ClusterName=lab
SlurmctldHost=head($NETWORK.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=15
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=2,sched_interval=5
PropagateResourceLimits=CORE
ReturnToService=2
JobRequeue=0
EnforcePartLimits=ALL
MinJobAge=3600
SlurmdTimeout=20
PropagatePrioProcess=1
KillWait=10
MailProg=/bin/true
MpiDefault=none
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/spool/%n/slurmd.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
GresTypes=gpu
$(for i in $(numbers); do
    echo "NodeName=node$i NodeAddr=$(address "$i") CPUs=$CPUS RealMemory=64000 Gres=gpu:$GPUS"
  done)
PartitionName=main Nodes=ALL Default=YES DefaultTime=10 MaxTime=1-0 State=UP
CONF
}

write_config() {
  mkdir -p "$DIR"/{state,spool,log,dev}
  write_hosts >"$DIR/hosts"
  write_slurm_conf >"$DIR/slurm.conf"
  for g in $(seq 0 $((GPUS - 1))); do ln -sfn /dev/null "$DIR/dev/gpu$g"; done  # SLURM insists on a device
  echo "Name=gpu File=$DIR/dev/gpu[0-$((GPUS - 1))]" >"$DIR/gres.conf"
  # slurmd loads a cgroup plugin even where nothing uses it, and its detection fails without systemd.
  case $(slurmctld -V) in
    *\ 2[0-2].*) echo CgroupPlugin=cgroup/v1 ;;
    *) echo CgroupPlugin=disabled ;;
  esac >"$DIR/cgroup.conf"
}

# Init of the cluster. Mounts are private to it: the host's /etc/hosts and named network namespaces stay as they are.
head_init() {
  hostname head
  mkdir -p /run/netns
  mount -t tmpfs tmpfs /run/netns
  mount --bind "$DIR/hosts" /etc/hosts
  ip link set lo up
  ip link add br0 type bridge
  ip addr add "$NETWORK.1/24" dev br0
  ip link set br0 up
  nice -n -10 slurmctld -D -i >>"$DIR/log/head.out" 2>&1 </dev/null &
  for i in $(numbers); do start_node "$i"; done
  wait_until_idle
  echo "ready"
  cat >/dev/null  # until the caller closes the pipe, or is gone
}

start_node() {
  local node=node$1
  ip netns add "$node"
  ip link add "veth$1" type veth peer name eth0 netns "$node"
  ip link set "veth$1" master br0 up
  ip -n "$node" link set lo up
  ip -n "$node" addr add "$(address "$1")/24" dev eth0
  ip -n "$node" link set eth0 up
  ip netns exec "$node" unshare --uts --mount --pid --fork --kill-child --mount-proc \
    bash "$SELF" node_init "$DIR" "$1" >>"$DIR/log/$node.out" 2>&1 </dev/null &
}

# Init of one node. No `exec slurmd`: process 1 must take in the orphans of its jobs, which slurmd does not.
node_init() {
  hostname "node$1"
  mount -t tmpfs tmpfs /dev/shm
  mkdir -p "$DIR/spool/node$1"
  nice -n -10 slurmd -D -N "node$1"
}

# Everything on the node dies at once and its network with it; SLURM hears of it when the node no longer answers.
cut_node() {
  pkill -KILL -f "unshare --uts --mount --pid --fork --kill-child --mount-proc bash $SELF node_init $DIR $1\$" || :
  ip netns del "node$1"
  ip link del "veth$1" 2>/dev/null || :
}

wait_until_idle() {
  for _ in $(seq 900); do
    [ "$(timeout 2 sinfo -h -t idle -o %D 2>/dev/null)" != "$NODES" ] || return 0
    sleep 0.1
  done
  echo "slurm_lab: the nodes are not idle after 90 s" >&2
  tail -n 5 "$DIR"/log/* >&2
  return 1
}

command=${1:-}
DIR=${2:-}
export SLURM_CONF=$DIR/slurm.conf
case $command in
  serve)
    [ "$(id -u)" = 0 ] || { echo "slurm_lab: needs root" >&2; exit 2; }
    write_config
    exec unshare --net --uts --mount --pid --fork --kill-child --mount-proc bash "$SELF" head_init "$DIR"
    ;;
  head_init) head_init ;;
  node_init) node_init "$3" ;;
  cut_node) cut_node "$3" ;;
  start_node) start_node "$3" ;;
  *) sed -n '2,12p' "$SELF" >&2; exit 2 ;;
esac
