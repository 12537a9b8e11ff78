#!/usr/bin/env bash
# A real Slurm of two nodes on one machine, for tests of cluster/slurm.sh: two network namespaces, two slurmd.
#   real_slurm.sh up DIR [SHARED...]     start it; DIR (in /tmp, empty) holds configuration, state and logs
#   real_slurm.sh on DIR NODE COMMAND... run a command on a node: sbatch, squeue, scancel, scontrol ...
#   real_slurm.sh down DIR               end what was started, and remove the namespaces
# Needs root, and Debian's slurm-wlm and munge. Nothing under /etc/slurm is touched. The nodes are called ru1 and ru2, have
# the addresses 10.78.0.1 and 10.78.0.2, four and two CPUs, whatever the machine has, and ru2 two made-up GPUs of kind k9.
# Each has a /tmp of its own, DIR/tmp-<node>, in which of the machine's only DIR and the SHARED folders are.
set -euo pipefail
what=$1 dir=$2
shift 2
export SLURM_CONF=$dir/slurm.conf

on() { # NODE COMMAND...: in the node's network, under its name
  local node=$1
  shift
  # shellcheck disable=SC2016
  nsenter --net="/run/netns/$node" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$node" "$@"
}

with_own_tmp() { # NODE COMMAND...: the same, and with a /tmp of its own
  local node=$1 place
  shift
  for place in "$dir" "${shared[@]}"; do mkdir -p "$dir/tmp-$node/${place#/tmp/}"; done
  # shellcheck disable=SC2016
  on "$node" unshare --mount --propagation private sh -c '
    own=$1 shift=$2
    shift 2
    while [ "$shift" -gt 0 ]; do
      mount --bind "$1" "$own/${1#/tmp/}"
      shift=$((shift - 1))
      shift
    done
    mount --rbind "$own" /tmp
    exec "$@"' sh "$dir/tmp-$node" $((1 + ${#shared[@]})) "$dir" "${shared[@]}" "$@"
}

up() {
  local memory i
  memory=$(awk '/MemTotal/ {print int($2 / 1024 / 2.2)}' /proc/meminfo)
  mkdir -p "$dir/state" "$dir/spool-ru1" "$dir/spool-ru2"
  ip netns add ru1
  ip netns add ru2
  ip link add ru1v type veth peer name ru2v
  for i in 1 2; do
    ip link set "ru${i}v" netns "ru$i"
    ip netns exec "ru$i" sh -c "ip link set lo up; ip addr add 10.78.0.$i/24 dev ru${i}v; ip link set ru${i}v up"
    ip netns exec "ru$i" ip route add default via "10.78.0.$((3 - i))" # so that a node finds its own address
  done
  cat >"$SLURM_CONF" <<EOF
ClusterName=ru
SlurmctldHost=ru1(10.78.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
SlurmctldPort=16817
SlurmdTimeout=30
MinJobAge=600
KillWait=30
NodeName=ru1 NodeAddr=10.78.0.1 Port=16818 CPUs=4 RealMemory=$memory
NodeName=ru2 NodeAddr=10.78.0.2 Port=16818 CPUs=2 RealMemory=$memory Gres=gpu:k9:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
EOF
  printf 'NodeName=ru2 Name=gpu Type=k9 File=/dev/null,/dev/zero\n' >"$dir/gres.conf"
  # slurmd 22.05 wants cgroups mounted even where it does not use them.
  printf 'CgroupAutomount=no\n' >"$dir/cgroup.conf"
  if [ ! -f /sys/fs/cgroup/cgroup.controllers ]; then printf 'CgroupPlugin=cgroup/v1\n' >>"$dir/cgroup.conf"; fi
  if ! munge -n >/dev/null 2>&1; then
    install -d -o munge -g munge /run/munge
    runuser -u munge -- munged
    touch "$dir/munged-is-ours"
    sleep 1
  fi
  on ru1 slurmctld
  with_own_tmp ru1 slurmd -N ru1
  with_own_tmp ru2 slurmd -N ru2
  for _ in $(seq 30); do
    if [ "$(on ru1 sinfo -h -t idle -o %D)" = 2 ]; then return; fi
    sleep 1
  done
  echo "real_slurm.sh: the nodes did not come up; see $dir/*.log" >&2
  exit 1
}

down() {
  local node pid
  on ru1 timeout 10 scancel --user=root 2>/dev/null && sleep 2
  for pid in "$dir"/slurmd-*.pid "$dir/slurmctld.pid"; do
    if [ -f "$pid" ]; then kill "$(cat "$pid")" 2>/dev/null || true; fi
  done
  if [ -f "$dir/munged-is-ours" ]; then kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true; fi
  for node in ru1 ru2; do # what is left in the two networks is ours
    for pid in $(ip netns pids "$node" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
    ip netns del "$node" 2>/dev/null || true
  done
}

case $what in
up) shared=("$@") && up ;;
on) on "$@" ;;
down) down ;;
esac
