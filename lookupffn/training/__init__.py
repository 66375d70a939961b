"""The training loop and what stands around it: settings, optimizer, schedule, run folder, checkpoints, tracking."""

from lookupffn.training.loop import train
from lookupffn.training.scoring import score

__all__ = ["score", "train"]
