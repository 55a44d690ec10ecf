"""State that survives a run: variables by name, checkpoints, progress, and the directory that holds them."""
