#!/bin/bash
# Trains on two machines with four GPUs each, a process for each GPU:
#   sbatch examples/slurm.sh PREPARED RUN --method dual-mutual --set train.labelled_batch=8 --set train.unlabelled_batch=8
# Without GPUs, two processes on one machine:
#   sbatch --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 examples/slurm.sh PREPARED RUN ...
# The same line submitted again goes on with the run where it was saved; one that is finished, or has
# other settings, it leaves alone and says so.
#SBATCH --job-name=dkuxnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120

set -euo pipefail
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000)) # jobs of one machine must not meet
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
TORCHELASTIC_RESTART_COUNT=1 # as torchrun says it: a run that is there goes on
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS TORCHELASTIC_RESTART_COUNT
# 120 s before the time limit every process gets SIGTERM: it finishes its step, the state is saved, and all end with code 130.
# --wait: where one process has ended, the others end too, at the latest after a minute.
srun --cpus-per-task="$OMP_NUM_THREADS" --wait=60 bash -c \
    'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec dkuxnet train "$@"' dkuxnet "$@"
