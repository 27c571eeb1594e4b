#!/bin/bash

# Parameters
#SBATCH --array=1-3%1
#SBATCH --cpus-per-task=96
#SBATCH --gres=gpu:8
#SBATCH --job-name=recorded
#SBATCH --mem=1048576M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/runs with spaces, 100%%/recorded/logs/slurm-%j.log'
#SBATCH --requeue
#SBATCH --signal=USR2@300

# setup
export PYTHONPATH=/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export TOKENIZERS_PARALLELISM=false
export SRUN_CPUS_PER_TASK=96
export OMP_NUM_THREADS=12

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -u -P -m launch.supervise '/runs with spaces, 100%/recorded' -- \
  srun --kill-on-bad-exit=1 --wait=60 \
  apptainer exec --nv --bind '/runs with spaces, 100%/recorded:/runs with spaces, 100%/recorded' --bind /dev/shm:/dev/shm --bind /tmp:/tmp --bind /data:/data:ro --writable-tmpfs /img/umbel.sif \
  bash -c 'exec python -u -P -m torch.distributed.run --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --max-restarts=0 --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2 --shutdown-timeout=600 --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID" -m train.worker '"'"'/runs with spaces, 100%/recorded/run.yaml'"'"''
