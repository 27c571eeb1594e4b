"""Runs as Slurm jobs: what is asked of the site, the script that asks it, and what the site answers."""
