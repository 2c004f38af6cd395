"""Trial records: their schema, and the files they live in."""
