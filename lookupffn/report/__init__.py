"""Reads finished runs and says what they found, in a form a person reads."""

from lookupffn.report.summary_table import evaluation_table, run_table

__all__ = ["evaluation_table", "run_table"]
