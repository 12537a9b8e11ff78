#!/usr/bin/env bash
# Take this to run one search on a Slurm cluster: a Ray cluster of this job's nodes, the search, and a clean end.
#   sbatch cluster/slurm.sh --benchmark tofu --model models/target --workers-per-trial 4 --zero 3 --trials 40
# What follows the script goes to `ray_unlearn tune`.
#
# Submit it from the checkout, on a file system that all nodes share, with the environment in .venv there (`make test`
# makes it); an environment that is active when you submit is taken else.
# Fill in: nodes, GPUs, CPUs and time below, and what your site demands (--account, --partition). What stands on
# sbatch's command line goes before these lines:
#   no GPUs                      sbatch --gpus-per-node=0 --cpus-per-task=8 cluster/slurm.sh ...
#   GPUs of a kind               sbatch --gpus-per-node=a100:4 cluster/slurm.sh ...
#   GPUs under another name      sbatch --gpus-per-node=0 --gres=NAME:4 cluster/slurm.sh ...   and GPUS_PER_NODE=4
#   GPUs of which Slurm knows nothing   the same without --gres
#   several searches             sbatch --array=0-2 cluster/slurm.sh ...   (SLURM_ARRAY_TASK_ID is in each one's environment)
# Ray gets the CPUs, GPUs and memory that Slurm gave the job on each node, whatever stands here.
#
# The search's folder is <--out, else results>/job-<job's number>/<search>. A job that Slurm starts once more (it was
# preempted, a node was lost, `scontrol requeue`) goes on with the search in it, and with the same log. Where one of
# several nodes is lost the search goes on with the others; only with the first one the job begins anew.
#
# Some minutes before the time limit, and on `scancel --signal=TERM --batch JOB`, the search is interrupted: what had
# finished is kept and reported. A plain `scancel JOB` leaves it KillWait (30 s by default): nothing that had finished is
# lost, and the report may be missing; `ray_unlearn tune --resume` and `report` take the folder as it is.
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
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --no-kill
set -euo pipefail

START_SECONDS=${START_SECONDS:-300} # until all nodes must be up
ASK_SECONDS=${ASK_SECONDS:-20}      # for one answer of the cluster
HEAD_SECONDS=${HEAD_SECONDS:-45}    # from the start of the head's Ray until it listens; it takes some five
NODE_SECONDS=${NODE_SECONDS:-8}     # for Ray's end on a node that was told to end
END_SECONDS=${END_SECONDS:-20}      # until all nodes must be down; with the search's 5 s less than KillWait
POLL_SECONDS=${POLL_SECONDS:-1}

say() { echo "slurm.sh: $*" >&2; }
pause() { sleep "$POLL_SECONDS" || true; } # scancel ends it, which is no error

if [ $# = 0 ]; then
  say "no options for \`ray_unlearn tune\`. Give them after the script's name"
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:?is not set. Submit this with sbatch}"
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
export RAY_UNLEARN_CACHE=${RAY_UNLEARN_CACHE:-$PWD/.cache}
unset PYTHONDONTWRITEBYTECODE # else each of Ray's processes compiles its imports anew, longer than Ray waits for them

# A token of this job's own, in a file that only you can read; srun hands on the path, never the token.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray_auth_token-$SLURM_JOB_ID
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_ip=${HEAD_IP:-$(hostname -I | cut -d' ' -f1)} # this script runs on the first node
port=$((20000 + SLURM_JOB_ID % 3000 * 3))          # and two after it; outside 10002-19999, where Ray's workers listen
address=$head_ip:$port
folder=/tmp/ray-$SLURM_JOB_ID # on each node; short, because sockets lie in it
# What Slurm runs on each node after its step, also where the step was killed.
cleaner=$RAY_AUTH_TOKEN_PATH.clean
printf '#!/bin/sh\nrm -rf %s %s.start\n' "$folder" "$folder" >"$cleaner"
chmod +x "$cleaner"
steps=() search="" stopping="" # steps: the nodes' job steps, in the nodes' order

# ---- one job step: Ray on one node, and nothing of it afterwards

ray_node() { # FOLDER NODE_SECONDS RAY_START_OPTIONS...
  local folder=$1 patience=$2 ray="" attempt code=0
  shift 2
  clean() {
    trap '' TERM INT USR1
    if [ -n "$ray" ]; then
      local deadline=$((SECONDS + patience))
      kill -TERM "$ray" 2>/dev/null
      while kill -0 "$ray" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
      kill -KILL "$ray" 2>/dev/null && sleep 1 # what it had started ends with it
    fi
    rm -rf "$folder" "$folder.start" || { sleep 1 && rm -rf "$folder"; }
  }
  trap 'clean; exit 0' TERM INT USR1
  local cpus=${SLURM_CPUS_ON_NODE:-$(nproc)} gpus=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}} memory=()
  if [ -z "$gpus" ]; then # an older Slurm says it only so
    gpus=$(printf '%s\n' "${CUDA_VISIBLE_DEVICES:-}" | awk -F, '{ print ($0 == "" || $0 == "NoDevFiles") ? 0 : NF }')
  fi
  local given=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * cpus))} # MiB; 0: all that the node has
  if [ "$given" -gt 0 ]; then
    memory=(--memory=$((given * 1048576 * 7 / 10)) --object-store-memory=$((given * 1048576 * 2 / 10)))
  fi
  for attempt in 1 2; do
    rm -rf "$folder"
    SECONDS=0 code=0
    # It loads Ray's agent once, for which Ray itself has no more than 15 s, and then becomes `ray start`.
    python -m ray_unlearn.byte_code ray start --block --disable-usage-stats --temp-dir="$folder" --num-cpus="$cpus" \
      --num-gpus="$gpus" "${memory[@]}" "$@" > >(tee "$folder.start") 2>&1 &
    ray=$!
    wait "$ray" || code=$?
    if [ "$attempt" = 2 ] || [ "$code" = 0 ] || [ "$SECONDS" -gt 120 ]; then break; fi
    sleep 2 # until its output is in the file
    if ! grep -qi "timed out" "$folder.start"; then break; fi # one of its processes had waited for another
    echo "slurm.sh: Ray was not up in its own time on $(hostname)" >&2
  done
  clean
  return "$code"
}

on_node() { # NODE RAY_START_OPTIONS...
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --nodelist="$node" --cpu-bind=none --no-kill --overlap \
    --task-epilog="$cleaner" bash -c "$(declare -f ray_node)"$'\nray_node "$@"' ray_node \
    "$folder" "$NODE_SECONDS" --dashboard-agent-listen-port=$((port + 2)) "$@" &
  steps+=($!)
}

# ---- the end

end() { # Ray's processes end with their job steps
  trap - EXIT
  trap '' TERM INT
  rm -f "$RAY_AUTH_TOKEN_PATH"
  if [ -n "$search" ]; then kill -KILL "$search" 2>/dev/null || true; fi # it has ended, unless this script failed
  if [ ${#steps[@]} -gt 0 ]; then
    kill -USR1 "${steps[@]}" 2>/dev/null || true # srun hands this one on; at TERM it kills the step
    local deadline=$((SECONDS + END_SECONDS))
    while any_alive "${steps[@]}" && [ "$SECONDS" -lt "$deadline" ]; do pause; done
    if any_alive "${steps[@]}"; then
      kill -TERM "${steps[@]}" 2>/dev/null || true
      sleep 2 || true
      kill -KILL "${steps[@]}" 2>/dev/null || true
    fi
  fi
  rm -f "$cleaner"
}

any_alive() { # PIDS...
  local pid
  for pid in "$@"; do
    if kill -0 "$pid" 2>/dev/null; then return 0; fi
  done
  return 1
}

interrupt() { # as Ctrl-C does; before the search there is nothing to keep
  if [ -z "$stopping" ]; then say "told to end"; fi
  stopping=yes
  if [ -n "$search" ]; then kill -INT "$search" 2>/dev/null || true; else exit 143; fi
}

trap end EXIT
trap interrupt TERM INT

# ---- the beginning

nodes_up() { # how many nodes of the cluster are alive; nothing where it does not answer, "closed" where nothing listens
  timeout -k 5 "$ASK_SECONDS" python -c '
import socket, sys
host, port = sys.argv[1].rsplit(":", 1)
try:
    socket.create_connection((host, int(port)), 5).close()
except OSError:
    sys.exit(print("closed"))
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))' "$address" 2>/dev/null || true
}

wait_for() { # NUMBER_OF_NODES
  local deadline=$((SECONDS + START_SECONDS)) up="" closed="" step
  until [ "${up:=0}" -ge "$1" ]; do
    for step in "${steps[@]}"; do
      kill -0 "$step" 2>/dev/null || { say "a node's Ray ended at its start; its output is above"; exit 1; }
    done
    if [ $SECONDS -ge $deadline ]; then
      say "$up of $1 node(s) were up after $START_SECONDS s"
      exit 1
    fi
    pause
    up=$(nodes_up)
    if [ "$up" = closed ]; then
      up=0
      if [ -d "$folder" ]; then closed=${closed:-$SECONDS}; fi # its Ray has begun
      if [ "$((SECONDS - ${closed:-$SECONDS}))" -ge "$HEAD_SECONDS" ]; then
        say "nothing listens at $address, $HEAD_SECONDS s after the head's start. HEAD_IP can name another of its addresses"
        exit 1
      fi
    else
      closed=""
    fi
  done
}

say "head on ${nodes[0]} ($address)"
on_node "${nodes[0]}" --head --node-ip-address="$head_ip" --port="$port" --ray-client-server-port=$((port + 1)) \
  --include-dashboard=false
wait_for 1
for node in "${nodes[@]:1}"; do
  say "worker on $node"
  on_node "$node" --address="$address"
done
wait_for "${#nodes[@]}"

# ---- the search: a new one, or the one that this job had begun

name=job-$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then name=job-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
out=results before="" again=()
for word in "$@"; do
  case $before in --out) out=$word ;; esac
  case $word in --out=*) out=${word#--out=} ;; esac
  # What a search that goes on may be told anew.
  case $before in --trials | --searches | --concurrent | --trial-timeout | --copy-to) again+=("$before" "$word") ;; esac
  case $word in
    --trials=* | --searches=* | --concurrent=* | --trial-timeout=* | --copy-to=*) again+=("$word") ;;
    --keep-model | --no-keep-model | --trust-remote-code | --no-trust-remote-code | --trust-code) again+=("$word") ;;
  esac
  before=$word
done
begun=$(find "$out/$name" -mindepth 2 -maxdepth 2 -name search.json -printf '%T@ %h\n' 2>/dev/null | sort -n | tail -n 1 || true)
command=(tune "$@" --out "$out/$name")
if [[ " $* " = *" --resume"[\ =]* ]]; then # it names its folder itself
  command=(tune "$@")
elif [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -n "$begun" ]; then
  command=(tune --resume "${begun#* }" "${again[@]}")
  say "start number $((SLURM_RESTART_COUNT + 1)) of this job: going on with ${begun#* }"
fi

mkdir -p "$folder/search" # its temporary files, which go with the rest where it is killed
# Job control, because without it a process in the background ignores SIGINT.
set -m
TMPDIR=$folder/search ray_unlearn "${command[@]}" --address "$address" &
search=$!
set +m
limit="" lost=""
while kill -0 "$search" 2>/dev/null; do
  for i in "${!steps[@]}"; do
    if kill -0 "${steps[i]}" 2>/dev/null; then continue; fi
    if [ "$i" -gt 0 ] && [[ "$lost" != *" $i "* ]] && [ -z "$stopping" ]; then
      lost="$lost $i "
      say "lost ${nodes[i]}. The search goes on with the other nodes"
    elif [ "$i" = 0 ] && [ -z "$limit" ]; then # a search without its cluster can only end
      limit=$((SECONDS + (${#stopping} ? 5 : 60)))
      say "the head's Ray has ended"
      kill -TERM "$search" 2>/dev/null || true
    fi
  done
  if [ -n "$limit" ] && [ $SECONDS -ge "$limit" ]; then kill -KILL "$search" 2>/dev/null || true; fi
  pause
done
status=0
wait "$search" || status=$?
say "the search ended with exit code $status"
exit $status
