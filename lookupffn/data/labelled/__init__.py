"""Labelled text for fine-tuning: the tasks of GLUE and the user's own files."""

from lookupffn.data.labelled.glue import GLUE, GlueTask
from lookupffn.data.labelled.tasks import Examples, LabelledData, load_task

__all__ = ["GLUE", "Examples", "GlueTask", "LabelledData", "load_task"]
