#!/bin/bash
# One Slurm job: a Ray cluster on its nodes for as long as one command runs. Submit it at the top of the checkout, on a file
# system that all nodes share, with the command behind it:
#
#   sbatch --nodes 2 --gpus-per-node 8 --cpus-per-task 64 --time 12:00:00 cluster/slurm.sh \
#       python pipelines/pretrain.py --preset gpu --root /shared/run --cluster.num-workers 16
#
# Three minutes before the time limit the command gets SIGTERM, writes a checkpoint and ends with code 143; the job is then
# queued again and continues. After `scancel` it is not. Ray has EVILM_RAY_START_S seconds to start (300). Tested with
# stand-ins of Slurm's commands on one machine, not on a Slurm cluster.
#SBATCH --job-name evilm
#SBATCH --ntasks-per-node 1
#SBATCH --signal B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode append
set -uo pipefail

[ $# -gt 0 ] || { echo "error: no command given; sbatch cluster/slurm.sh python pipelines/pretrain.py ..." >&2; exit 2; }
[ -f .venv/bin/activate ] && source .venv/bin/activate

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs that share a node need a port each.
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$first:$port" RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
# Ray's ports listen on all interfaces: without a token every user of the network could run code in this job.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
[ -n "${RAY_AUTH_TOKEN_PATH:-}" ] ||
    export RAY_AUTH_TOKEN="${RAY_AUTH_TOKEN:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}"
node=(--block --num-cpus "${SLURM_CPUS_PER_TASK:-$(nproc)}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")
step=(srun --export=ALL --overlap) # the token too, whatever --export sbatch was given

end_ray() {
    kill "${rays[@]}" 2>/dev/null
    wait "${rays[@]}"
    timeout 60 "${step[@]}" --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" rm -rf "$RAY_TMPDIR" ||
        echo "$RAY_TMPDIR may be left on some nodes" >&2
}

"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$first" \
    ray start --head --node-ip-address "$first" --port "$port" --temp-dir "$RAY_TMPDIR" --include-dashboard false "${node[@]}" &
rays=($!)
deadline=$((SECONDS + ${EVILM_RAY_START_S:-300}))
until said=$(timeout 60 ray health-check --address "$RAY_ADDRESS" 2>&1); do
    why=
    kill -0 "${rays[0]}" 2>/dev/null || why="it ended, see above"
    [ "$SECONDS" -lt "$deadline" ] || why="no answer in ${EVILM_RAY_START_S:-300} s; $(tail -n 1 <<< "$said")"
    [ -z "$why" ] || { echo "error: Ray did not start on $first: $why" >&2; end_ray; exit 1; }
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    "${step[@]}" --nodes="$others" --ntasks="$others" --exclude="$first" \
        ray start --address "$RAY_ADDRESS" "${node[@]}" &
    rays+=($!)
fi

"$@" &
command=$!
at_limit=
trap 'again=1 at_limit=1; echo "asking the command for a checkpoint"; kill -TERM "$command"' USR1
trap 'again=1; kill -TERM "$command"' TERM
while again=; wait "$command"; code=$?; [ -n "$again" ]; do :; done # a signal ends `wait`, not the command

end_ray
[ -n "$at_limit" ] && [ "$code" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
