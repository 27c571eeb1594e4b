"""The process that stands by a run: it starts the workers, watches them, and knows what to do next."""
