"""Text to masked batches: corpus, tokenizer, packing, masking, and the pipeline that joins them."""

from lookupffn.data.batches import training_batches
from lookupffn.data.masking import MaskedBatch, Masker
from lookupffn.data.packing import PackedTokens
from lookupffn.data.pipeline import PreparedData, prepare_data

__all__ = ["MaskedBatch", "Masker", "PackedTokens", "PreparedData", "prepare_data", "training_batches"]
