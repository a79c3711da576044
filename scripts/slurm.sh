#!/bin/bash
# A search on several machines of a Slurm cluster: one Ray over all nodes of the job, one driver, one study.
#
#     nas-kd fetch cheng2020 clic-train kodak --yes            # once, where there is a network
#     sbatch --nodes 4 scripts/slurm.sh --teacher cheng2020 --data clic-train --eval-data kodak --budget 200 --trials-per-gpu 1
#
# Submit it from a folder that all nodes see: studies/ is made there. What follows the script's name is what `nas-kd search`
# takes. Two minutes before the time limit the search stops as by Ctrl-C and the job lines up again, until the budget is spent.
#
#SBATCH --job-name=nas-kd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nas-kd-%j.out
set -euo pipefail

# On compute nodes nothing is fetched: what is lacking is said, with the command that fetches it elsewhere.
export NAS_KD_FETCH="${NAS_KD_FETCH:-never}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Jobs that share a machine have ports of their own.
port=$((20000 + SLURM_JOB_ID % 20000))
address="$head:$port"

trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT

on() { # nodes, how to choose them, what Ray is to do there
    srun --nodes="$1" --ntasks="$1" "$2" ray start --block --disable-usage-stats \
        --num-cpus="$SLURM_CPUS_PER_TASK" "${@:3}" &
}

on 1 --nodelist="$head" --head --port="$port"
for _ in $(seq 60); do
    if ray status --address "$address" >/dev/null 2>&1; then
        break
    fi
    sleep "${NAS_KD_SLURM_WAIT_S:-2}"
done
if ((SLURM_JOB_NUM_NODES > 1)); then
    on "$((SLURM_JOB_NUM_NODES - 1))" --exclude="$head" --address="$address"
fi

search="" stopped=false
trap 'stopped=true; [ -z "$search" ] || kill -TERM "$search"' TERM
nas-kd search "$@" --address "$address" &
search=$!
if $stopped; then # the signal came just before there was something to stop
    kill -TERM "$search"
fi
code=0
wait "$search" || code=$?
if $stopped; then
    code=0
    wait "$search" || code=$?
    if ((code != 0)); then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
