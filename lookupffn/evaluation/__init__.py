"""Perplexity on fixed tokens and fixed masks."""

from lookupffn.evaluation.perplexity import (
    EvaluationResult,
    evaluate_mlm,
    unigram_log_probabilities,
    unigram_perplexity,
    validation_sequences,
)

__all__ = [
    "EvaluationResult",
    "evaluate_mlm",
    "unigram_log_probabilities",
    "unigram_perplexity",
    "validation_sequences",
]
