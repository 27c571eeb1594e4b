"""What a run leaves on disk besides its weights: folder, metrics, events, locks, requests. Free of torch."""
