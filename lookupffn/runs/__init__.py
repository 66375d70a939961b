"""The folder of a run: its names, lock, checkpoints, metrics and summary, for writing and reading."""
