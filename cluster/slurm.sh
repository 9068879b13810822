#!/bin/bash
# One Slurm job: a Ray cluster on its nodes for as long as one command runs. Submit it at the top of the checkout, on a file
# system that all nodes share, with the command behind it:
#
#   sbatch --nodes 2 --gpus-per-node 8 --cpus-per-task 64 --time 12:00:00 cluster/slurm.sh \
#       python pipelines/pretrain.py --preset gpu --root /shared/run --cluster.num-workers 16
#
# Three minutes before the time limit the command gets SIGTERM, writes a checkpoint and ends with code 143; the job is then
# queued again and continues. Tested with stand-ins of Slurm's commands on one machine, not on a Slurm cluster.
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
node=(--block --num-cpus "${SLURM_CPUS_PER_TASK:-$(nproc)}" --num-gpus "${SLURM_GPUS_ON_NODE:-0}")

srun --nodes=1 --ntasks=1 --overlap --nodelist="$first" \
    ray start --head --node-ip-address "$first" --port "$port" --temp-dir "$RAY_TMPDIR" --include-dashboard false "${node[@]}" &
rays=($!)
until ray health-check --address "$RAY_ADDRESS" 2>/dev/null; do
    kill -0 "${rays[0]}" 2>/dev/null || { echo "error: Ray did not start on $first" >&2; exit 1; }
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --nodes="$others" --ntasks="$others" --overlap --exclude="$first" \
        ray start --address "$RAY_ADDRESS" "${node[@]}" &
    rays+=($!)
fi

"$@" &
command=$!
trap 'echo "asking the command for a checkpoint"; kill -TERM "$command"' USR1 TERM
wait "$command"; code=$?
while kill -0 "$command" 2>/dev/null; do wait "$command"; code=$?; done # a signal ends `wait`, not the command

kill "${rays[@]}" 2>/dev/null
wait "${rays[@]}"
rm -rf "$RAY_TMPDIR"
[ "$code" -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$code"
