"""The run: its directory, the loop's bookkeeping, checkpoints, metrics."""
