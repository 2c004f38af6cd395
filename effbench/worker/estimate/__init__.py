"""One step of a cell without its memory: the real stack on fake tensors, which have shapes and no content."""
