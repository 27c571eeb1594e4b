"""How a step is made: model, engine, loss, loop and worker. Knows nothing of hubs or Slurm."""
