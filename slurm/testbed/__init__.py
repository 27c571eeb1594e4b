"""A real Slurm of several nodes on one machine; ``slurm/testcluster`` is its command."""
