"""What a run leaves behind: the portable state, version 1 (docs/checkpoint-format.md)."""
