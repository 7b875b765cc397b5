#!/bin/bash
# Two machines with four GPUs each. Submit again after a time limit: the run goes on where it was saved.
#   sbatch examples/slurm.sh PREPARED RUN --method dual-mutual --set train.labelled_batch=8 --set train.unlabelled_batch=8
#SBATCH --job-name=dkuxnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120

set -euo pipefail
prepared=$1 run=$2
shift 2
if compgen -G "$run/checkpoints/*-*.safetensors" > /dev/null; then
    set -- --resume # its own settings count
fi
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 4 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "$host:29500" -m dkuxnet train "$prepared" "$run" "$@"
