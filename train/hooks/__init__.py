"""Work beside the steps: metrics, checkpoints, evaluation, samples, memory."""
