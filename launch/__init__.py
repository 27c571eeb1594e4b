"""How a run starts and stays up: the command line and what stands behind it."""
