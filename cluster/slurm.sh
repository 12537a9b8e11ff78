#!/usr/bin/env bash
# Take this to run one search on a Slurm cluster: a Ray cluster of this job's nodes, the search, and a clean end.
#   sbatch cluster/slurm.sh --benchmark tofu --model models/target --workers-per-trial 4 --zero 3 --trials 40
# What follows the script goes to `ray_unlearn tune`.
#
# Submit it from the checkout, on a file system that all nodes share, with the environment in .venv there (`make test`
# makes it); an environment that is active when you submit is taken else.
# Fill in: nodes, GPUs, CPUs and time below, and what your site demands (--account, --partition).
#
# Some minutes before the time limit, and on `scancel --signal=TERM --batch JOB`, the search is interrupted: what had
# finished is kept and reported. A plain `scancel JOB` leaves it KillWait (30 s by default), which may be too short.
#
#SBATCH --job-name=ray_unlearn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=ray_unlearn-%j.log
set -euo pipefail

START_SECONDS=${START_SECONDS:-300} # until all nodes must be up
END_SECONDS=${END_SECONDS:-60}      # until Ray must be down; it drains for 30 s
POLL_SECONDS=${POLL_SECONDS:-1}

say() { echo "slurm.sh: $*" >&2; }

if [ $# = 0 ]; then
  say "no options for \`ray_unlearn tune\`. Give them after the script's name"
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:?is not set. Submit this with sbatch}"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
export RAY_UNLEARN_CACHE=${RAY_UNLEARN_CACHE:-$PWD/.cache}

# A token of this job's own, in a file that only you can read; srun hands on the path, never the token.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray_auth_token-$SLURM_JOB_ID
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")

steps=()
search=""
stopping=""

end() { # Ray's processes end with their job steps
  trap - EXIT
  trap '' TERM INT
  if [ ${#steps[@]} -gt 0 ]; then
    kill -TERM "${steps[@]}" 2>/dev/null || true
    local deadline=$((SECONDS + END_SECONDS))
    while kill -0 "${steps[@]}" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep "$POLL_SECONDS"; done
    kill -KILL "${steps[@]}" 2>/dev/null || true
  fi
  rm -f "$RAY_AUTH_TOKEN_PATH"
}

interrupt() { # as Ctrl-C does; before the search there is nothing to keep
  stopping=yes
  say "told to end"
  if [ -n "$search" ]; then kill -INT "$search" 2>/dev/null || true; else exit 143; fi
}

trap end EXIT
trap interrupt TERM INT

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=${HEAD_IP:-$(hostname -I | cut -d' ' -f1)} # this script runs on the first node
port=$((20000 + SLURM_JOB_ID % 10000))             # outside 10002-19999, where Ray's workers listen
address=$head_ip:$port

on_node() { # NODE RAY_START_OPTIONS...
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray start --block --disable-usage-stats --num-cpus="$SLURM_CPUS_PER_TASK" \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" "$@" &
  steps+=($!)
}

nodes_up() { # how many nodes of the cluster are alive; nothing where it does not answer
  python -c '
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' "$address" 2>/dev/null || true
}

wait_for() { # NUMBER_OF_NODES
  local deadline=$((SECONDS + START_SECONDS)) up=""
  until [ "${up:=0}" -ge "$1" ]; do
    for step in "${steps[@]}"; do
      kill -0 "$step" 2>/dev/null || { say "a node's Ray ended at its start; its output is above"; exit 1; }
    done
    if [ $SECONDS -ge $deadline ]; then
      say "$up of $1 node(s) were up after $START_SECONDS s"
      exit 1
    fi
    sleep "$POLL_SECONDS"
    up=$(nodes_up)
  done
}

say "head on ${nodes[0]} ($address)"
on_node "${nodes[0]}" --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false
wait_for 1
for node in "${nodes[@]:1}"; do
  say "worker on $node"
  on_node "$node" --address="$address"
done
wait_for "${#nodes[@]}"

# Job control, because without it a process in the background ignores SIGINT.
set -m
ray_unlearn tune "$@" --address "$address" &
search=$!
set +m
status=0
wait "$search" || status=$?
if [ -n "$stopping" ]; then # the signal ended that wait, not the search
  status=0
  wait "$search" || status=$?
fi
say "the search ended with exit code $status"
exit $status
