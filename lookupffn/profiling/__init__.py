"""A machine's peaks, how long a feed-forward should take on it, and projection to machines that are not at hand."""

from lookupffn.profiling.advise import Advice, advise
from lookupffn.profiling.explain import Prediction, predict
from lookupffn.profiling.hardware import load_machine
from lookupffn.profiling.machine import Machine
from lookupffn.profiling.timing import Point

__all__ = ["Advice", "Machine", "Point", "Prediction", "advise", "load_machine", "predict"]
