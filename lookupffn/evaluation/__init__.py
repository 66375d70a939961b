"""Scores of trained models, and the time their feed-forwards take."""
