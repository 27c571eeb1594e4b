"""How institutions share a run: the room that the hub and the relay move into."""
