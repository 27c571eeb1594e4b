"""From tokens to rows on disk: packed in parts, by all cores, whole after any kill."""
