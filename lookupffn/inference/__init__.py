"""A whole encoder made fast for inference on a CPU: ``model.optimize_for_inference(precision)``."""

from lookupffn.inference.optimize import optimize_for_inference

__all__ = ["optimize_for_inference"]
