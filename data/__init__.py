"""Where tokens come from: sources, tokenizer, prepared rows, and the global order every rank reads."""
