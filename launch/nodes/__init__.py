"""Looking at nodes before anything starts on them: what each has and does, and which are fit for a run."""
