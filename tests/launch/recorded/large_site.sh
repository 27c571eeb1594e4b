#!/bin/bash

# Parameters
#SBATCH --account=abc@a100
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=8
#SBATCH --exclude='node17,node[20-23]'
#SBATCH --gres=gpu:8
#SBATCH --hint=nomultithread
#SBATCH --job-name=recorded
#SBATCH --mem=1048576M
#SBATCH --no-kill
#SBATCH --nodes=5
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/scr/runs/recorded/logs/slurm-%j.log
#SBATCH --partition=gpu_p5
#SBATCH --qos=qos_gpu
#SBATCH --requeue
#SBATCH --reservation=week
#SBATCH --signal=USR2@300
#SBATCH --time=20:00:00

# setup
command -v module > /dev/null || source /etc/profile
module load cuda/12.8.0 nccl/2.26.2 || exit
ulimit -c 0
export HF_TOKEN_PATH="${HF_TOKEN_PATH:-${HF_HOME:-$HOME/.cache/huggingface}/token}"
export PYTHONPATH=/code${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1
export TOKENIZERS_PARALLELISM=false
export SRUN_CPUS_PER_TASK=8
export OMP_NUM_THREADS=8
export HF_HUB_OFFLINE=1
export HF_DATASETS_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
export WANDB_MODE=offline
export HF_HOME=/shared/huggingface
export NCCL_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5
export NCCL_DEBUG=WARN
export NCCL_NVLS_ENABLE=0
export TORCH_NCCL_TRACE_BUFFER_SIZE=2000

# command
export SUBMITIT_EXECUTOR=slurm
exec /venv/bin/python -u -P -m launch.supervise /scr/runs/recorded -- \
  srun --kill-on-bad-exit=1 --wait=60 \
  /venv/bin/python -u -P -m train.worker /scr/runs/recorded/run.yaml
