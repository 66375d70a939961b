"""Perplexity on fixed tokens and fixed masks."""

from lookupffn.evaluation.perplexity import (
    EvaluationResult,
    EvaluationStopped,
    evaluate_mlm,
    unigram_log_probabilities,
    unigram_perplexity,
    validation_sequences,
)

__all__ = [
    "EvaluationResult",
    "EvaluationStopped",
    "evaluate_mlm",
    "unigram_log_probabilities",
    "unigram_perplexity",
    "validation_sequences",
]
