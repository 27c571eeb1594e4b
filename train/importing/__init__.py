"""A run made of a checkpoint that another trainer saved."""
