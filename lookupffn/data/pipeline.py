"""From a data and a tokenizer configuration to packed, cached token arrays."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from lookupffn import storage
from lookupffn.config.data import DataSettings, masked_count
from lookupffn.config.sections import TokenizerSettings
from lookupffn.data import cache, packing
from lookupffn.data.corpus import SPLITS, Corpus, open_corpus
from lookupffn.data.packing import PackedTokens
from lookupffn.data.parallel import process_count
from lookupffn.data.tokenizer import make_tokenizer, special_ids, tokenizer_fingerprint
from lookupffn.errors import UserError
from lookupffn.tokenizers import vocabulary_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """What a run needs of its data.

    Attributes:
        train, validation: the splits that were asked for, else None.
        tokenizer: a fast tokenizer that ``save_pretrained`` writes.
        token_counts: int64 [V], how often each token occurs in the train split; None without it. Special tokens count
            zero: they are never masked, and a bar that spends probability on them would be too easy to beat.
        validation_counts: the same of the validation split.
        name: of the corpus; ends in "-custom" where an embedded corpus is not the published one.
        data_fingerprint: 32 hex digits. The first half names the packed validation tokens (it seeds their masks), the
            second the source of the train split.
        tokenizer_fingerprint: 32 hex digits of the tokenizer's content.
    """

    train: PackedTokens | None
    validation: PackedTokens | None
    tokenizer: PreTrainedTokenizerBase
    token_counts: np.ndarray | None
    validation_counts: np.ndarray | None
    name: str
    data_fingerprint: str
    tokenizer_fingerprint: str


def _pack(
    corpus: Corpus, split: str, tokenizer: PreTrainedTokenizerBase, tokenizer_key: str, cache_dir: Path, processes: int
) -> Path:
    """The cache entry with the tokens of a split, prepared if it is not there."""
    key = storage.fingerprint(version=packing.VERSION, source=corpus.fingerprint(split), tokenizer=tokenizer_key)
    entry = cache_dir / "tokens" / key
    what = f"{split} split of data={corpus.name}"
    ids = special_ids(tokenizer)

    def build(folder: Path) -> None:
        packing.write_tokens(
            folder,
            corpus.documents(split),
            tokenizer.backend_tokenizer,
            begin=ids.begin,
            end=ids.end,
            vocab_size=vocabulary_size(tokenizer),
            what=what,
            processes=processes,
            characters=corpus.characters(split),
        )

    if not cache.ensure_entry(entry, build, what=f"the {what}", kept_after=(KeyboardInterrupt,)):
        logger.info("%s found in the cache, preparation skipped", what)
    return entry


def _maskable(packed: PackedTokens, tokenizer: PreTrainedTokenizerBase, mask_rate: float, what: str) -> PackedTokens:
    """The sequences in which there is enough to mask.

    Raises:
        UserError: there are none.
    """
    least = masked_count(mask_rate, packed.sequence_length)
    ids = special_ids(tokenizer).all
    special = np.zeros(max(packed.vocab_size, max(ids) + 1), dtype=bool)
    special[list(ids)] = True
    kept = packed.with_ordinary(special, least)
    if len(kept) < len(packed):
        said = (
            f"{len(packed) - len(kept):,} of the {len(packed):,} sequences of the {what} have fewer than {least} "
            "tokens that are not special: documents too short, or in characters that the tokenizer does not know"
        )
        if not len(kept):
            raise UserError(f"{said}; lower data.mask_rate or use another tokenizer")
        logger.warning("%s; they are left out", said)
    return kept


def prepare_data(
    data: DataSettings,
    tokenizer: TokenizerSettings | PreTrainedTokenizerBase,
    cache_dir: Path,
    *,
    splits: Sequence[str] = SPLITS,
    num_processes: int | None = None,
) -> PreparedData:
    """Read, tokenize and pack a corpus, or find it in the cache.

    Safe to call from several processes at once: one prepares, the others wait for it.

    Args:
        data: the data section.
        tokenizer: the tokenizer section, or a tokenizer to use as it is.
        cache_dir: folder of the cache, made if needed.
        splits: which of "train" and "validation" to give back. The validation split is prepared in any case, for its
            tokens are part of the fingerprint.
        num_processes: worker processes, by default one a core; it never changes the result.

    Raises:
        UserError: anything wrong with the files, the network or the disk, in one line.
    """
    cache_dir = Path(cache_dir).expanduser()
    corpus = open_corpus(data, cache_dir, num_processes)
    for split in {*splits, "validation"}:
        if not corpus.has(split):
            raise UserError(
                f"data={corpus.name} has no {split} split: give data.{split}_files"
                + (" or a data.validation_fraction above 0" if split == "validation" else "")
            )
    try:
        return _prepare(corpus, tokenizer, cache_dir, data, splits, process_count(num_processes))
    finally:
        corpus.report()


def _prepare(
    corpus: Corpus,
    tokenizer: TokenizerSettings | PreTrainedTokenizerBase,
    cache_dir: Path,
    settings: DataSettings,
    splits: Sequence[str],
    processes: int,
) -> PreparedData:
    """The part of ``prepare_data`` that reads the corpus."""
    for split in SPLITS:
        if corpus.has(split):
            corpus.fingerprint(split)  # files that cannot be read, or are in both splits, are named before any work
    made = make_tokenizer(tokenizer, corpus, cache_dir)
    length = settings.sequence_length
    tokenizer_key = tokenizer_fingerprint(made)
    packed: dict[str, PackedTokens] = {}
    counts: dict[str, np.ndarray] = {}
    for split in SPLITS:
        if split not in splits and split != "validation":
            continue
        entry = _pack(corpus, split, made, tokenizer_key, cache_dir, processes)
        packed[split] = _maskable(PackedTokens(entry, length), made, settings.mask_rate, f"{split} split")
        counts[split] = np.load(entry / packing.COUNTS)
        counts[split][[i for i in special_ids(made).all if i < len(counts[split])]] = 0
        logger.info("%s: %d sequences of %d tokens", split, len(packed[split]), length)

    tokens = cache.read_manifest(packed["validation"].entry)[packing.TOKENS]["sha256"]
    common = {"tokenizer": tokenizer_key, "sequence_length": length}
    source = corpus.fingerprint("train") if corpus.has("train") else None
    fingerprint = (
        storage.fingerprint(validation=tokens, **common)[:16] + storage.fingerprint(train=source, **common)[:16]
    )
    return PreparedData(
        train=packed.get("train"),
        validation=packed["validation"] if "validation" in splits else None,
        tokenizer=made,
        token_counts=counts.get("train"),
        validation_counts=counts["validation"] if "validation" in splits else None,
        name=corpus.name,
        data_fingerprint=fingerprint,
        tokenizer_fingerprint=tokenizer_key,
    )
