"""The training loop and what stands around it: settings, optimizer, schedule, run folder, checkpoints, tracking."""

from lookupffn.evaluation.score import score
from lookupffn.training.trainer import train

__all__ = ["score", "train"]
