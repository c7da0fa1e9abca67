"""State, train step, loop, optimisers, checkpoints, metrics."""
