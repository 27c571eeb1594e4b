#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --job-name=recorded
#SBATCH --mail-type=FAIL
#SBATCH --mem=1048576M
#SBATCH --nice=100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/recorded/logs/slurm-%j.log
#SBATCH --requeue
#SBATCH --signal=USR2@300

# setup
echo "$SLURM_JOB_ID"
export PYTHONPATH=/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export TOKENIZERS_PARALLELISM=false
export SRUN_CPUS_PER_TASK=12
export OMP_NUM_THREADS=12
export A='it'"'"'s $HOME'

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -u -P -m launch.supervise /runs/recorded -- \
  srun --kill-on-bad-exit=1 --wait=60 --container-image=umbel.sqsh --container-mounts=/runs/recorded:/runs/recorded,/dev/shm:/dev/shm,/tmp:/tmp --no-container-mount-home \
  python -u -P -m train.worker /runs/recorded/run.yaml
