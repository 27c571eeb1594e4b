#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:8
#SBATCH --job-name=recorded
#SBATCH --mem=1048576M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/recorded/logs/slurm-%j.log
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=02:00:00

# setup
export PYTHONPATH=/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export TOKENIZERS_PARALLELISM=false
export SRUN_CPUS_PER_TASK=12
export OMP_NUM_THREADS=12

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -u -P -m launch.supervise /runs/recorded -- \
  srun --kill-on-bad-exit=1 --wait=60 \
  /venv/bin/python -u -P -m train.worker /runs/recorded/run.yaml
