#!/usr/bin/env bash
# Training on several machines under SLURM: one torchrun a machine, one process a GPU.
#
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm_train.sh RECIPE RUN [a.b=c ...]
#
# RUN lies on a file system that all machines see. A job that is requeued, or submitted again, goes on from the newest
# complete checkpoint. Not run on a cluster here: the command that it puts together is checked in the tests.
#SBATCH --job-name jointembed
#SBATCH --ntasks-per-node 1
#SBATCH --cpus-per-task 32
#SBATCH --requeue
#SBATCH --open-mode append
#SBATCH --output %x-%j.log
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: sbatch scripts/slurm_train.sh RECIPE RUN [a.b=c ...]" >&2
  exit 2
fi
recipe="$1" run="$2"
shift 2

nodes="${SLURM_JOB_NUM_NODES:-1}"
processes="${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}"
hosts="$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}")" # whole: a pipe to head could kill it
first="${hosts%%$'\n'*}"
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000)) # two jobs may share a machine
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$nodes" --nproc-per-node "$processes" \
  --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "${SLURM_JOB_ID:-0}" --max-restarts 0 \
  -m jointembed train "$recipe" "$@" --out "$run" --resume
