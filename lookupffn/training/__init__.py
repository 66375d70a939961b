"""The training loop and what stands around it: optimizer, schedule, budget, tracking."""

from lookupffn.training.run import train

__all__ = ["train"]
