"""The tokenizer of a run: trained on the corpus, or taken from a folder or the hub."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lookupffn import storage
from lookupffn.config.sections import TokenizerSettings, TrainedTokenizerSettings
from lookupffn.data import cache
from lookupffn.data.corpus import Corpus
from lookupffn.data.parallel import in_child
from lookupffn.errors import UserError
from lookupffn.tokenizers import load_tokenizer

logger = logging.getLogger(__name__)

VERSION = 1
# RoBERTa's order; its <mask> is the last entry of a fixed vocabulary, ours follows the others so that its id does not
# depend on how many entries the training found
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# The training takes time in proportion to the square of the longest unbroken run (of signs, of letters without spaces),
# so it sees longer ones in pieces of this many bytes. Ordinary text has none, and its tokenizer does not change.
_LONGEST_RUN = 1024
_ADVICE = "check tokenizer.path and the network, or use tokenizer=trained or a local folder"
_ALPHABET = 256 + len(SPECIAL_TOKENS)  # every byte, so that no text is unknown


@dataclass(frozen=True)
class SpecialIds:
    """The ids that packing and masking need."""

    begin: int
    end: int
    mask: int
    all: tuple[int, ...]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> SpecialIds:
    """
    Raises:
        UserError: the tokenizer has no mask token of its own, or nothing to put between documents.
    """
    name = tokenizer.name_or_path or type(tokenizer).__name__
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"tokenizer {name} has no mask token, which masked language modeling needs: use one made for it"
        )
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if begin is None or end is None:
        raise UserError(f"tokenizer {name} has no tokens for the beginning and end of a document (<s>, </s>)")
    others = (begin, end, tokenizer.pad_token_id, tokenizer.unk_token_id)
    if tokenizer.mask_token_id in others:
        raise UserError(
            f"tokenizer {name} uses its mask token {tokenizer.mask_token!r} for something else too (padding, unknown "
            "text, the beginning or end of a document): give it a mask token of its own"
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"tokenizer {name} is not a fast tokenizer: save it in the tokenizers format (tokenizer.json)")
    return SpecialIds(begin, end, tokenizer.mask_token_id, tuple(sorted(set(tokenizer.all_special_ids))))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex digits of what decides the ids of a text; the same for a tokenizer and its saved and loaded copy."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = special_ids(tokenizer)
    content = {key: backend.get(key) for key in ("model", "normalizer", "pre_tokenizer")}
    added = sorted((token["id"], token["content"], token["special"]) for token in backend.get("added_tokens", ()))
    return storage.fingerprint(content=content, added=added, special=[ids.begin, ids.end, ids.mask, ids.all])


def _limited(documents: Iterator[str], characters: int) -> Iterator[str]:
    total = 0
    for document in documents:
        yield document[: characters - total]
        total += len(document)
        if total >= characters:
            return


def _train_backend(corpus: Corpus, vocab_size: int, max_characters: int) -> str:
    """A byte-level BPE of the train split, as the JSON of ``tokenizers``."""
    backend = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = pre_tokenizers.Split(Regex(f".{{{_LONGEST_RUN}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, lstrip=token == "<mask>", special=True) for token in SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    total = corpus.characters("train")
    with tqdm(
        total=min(total, max_characters) if total else None,
        desc=f"training tokenizer ({vocab_size} entries)",
        unit="char",
        unit_scale=True,
    ) as bar:

        def counted() -> Iterator[str]:
            for document in _limited(corpus.documents("train"), max_characters):
                bar.update(len(document))
                yield document
            bar.close()
            logger.info("the tokenizer has read its text; learning %s merges", f"{vocab_size - _ALPHABET:,}")

        backend.train_from_iterator(counted(), trainer)
    backend.pre_tokenizer = words
    begin, _, end, *_ = SPECIAL_TOKENS
    ends = ((end, SPECIAL_TOKENS.index(end)), (begin, SPECIAL_TOKENS.index(begin)))
    backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=False)
    return backend.to_str()


def train_tokenizer(corpus: Corpus, vocab_size: int, max_characters: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with RoBERTa's special tokens on the train split.

    The training runs in a child process: it uses Rust threads, after which a process should not fork any more.

    Args:
        vocab_size: entries, special tokens included; a small corpus may give fewer.
        max_characters: how much of the corpus is read.
    """
    backend = Tokenizer.from_str(in_child(_train_backend, corpus, vocab_size, max_characters))
    if backend.get_vocab_size() < vocab_size:
        logger.warning("the corpus gives %d tokenizer entries, %d were asked for", backend.get_vocab_size(), vocab_size)
    begin, pad, end, unknown, mask = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin, cls_token=begin, eos_token=end, sep_token=end, pad_token=pad, unk_token=unknown,
        mask_token=AddedToken(mask, lstrip=True, special=True),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _trained(settings: TrainedTokenizerSettings, corpus: Corpus, cache_dir: Path) -> PreTrainedTokenizerBase:
    vocab_size = settings.vocab_size
    max_characters = 10**15 if settings.max_characters is None else settings.max_characters
    if not corpus.has("train"):
        raise UserError("tokenizer=trained needs text to train on: give data.train_files, or tokenizer=pretrained")
    key = storage.fingerprint(
        version=VERSION, corpus=corpus.fingerprint("train"), vocab_size=vocab_size, characters=max_characters
    )
    entry = cache_dir / "tokenizers" / key

    def build(folder: Path) -> None:
        if next(corpus.documents("train"), None) is None:
            raise UserError(f"the train split of data={corpus.name} is empty: there is no text to train a tokenizer on")
        tokenizer = train_tokenizer(corpus, vocab_size, max_characters)
        try:
            tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # what the Rust side makes of a full disk
            raise OSError(str(error)) from error

    if not cache.ensure_entry(entry, build, what=f"a tokenizer of {vocab_size} entries"):
        logger.info("tokenizer of %d entries found in the cache", vocab_size)
    return PreTrainedTokenizerFast.from_pretrained(entry)


def _pretrained(path: str | None) -> PreTrainedTokenizerBase:
    if not path:
        raise UserError("tokenizer=pretrained needs tokenizer.path=<folder or hub name>, for example roberta-base")
    local = Path(path).expanduser()
    if not local.exists() and path.startswith((".", "/", "~")):
        raise UserError(f"tokenizer.path: no folder {path}: check the path")
    try:
        if not local.exists():
            _cached_or_reachable(path)
        return load_tokenizer(local if local.exists() else path)
    except UserError as error:
        raise UserError(f"{error}: {_ADVICE}") from error
    except Exception as error:  # whatever the hub's client raises
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"cannot load the tokenizer {path} ({reason}): {_ADVICE}") from error


def _cached_or_reachable(name: str) -> None:
    """Fail within seconds when a hub tokenizer is neither in the local hub cache nor reachable; loading would retry."""
    import huggingface_hub

    known = [
        huggingface_hub.try_to_load_from_cache(name, file) for file in ("tokenizer.json", "vocab.json", "config.json")
    ]
    if not any(isinstance(path, str) for path in known):
        huggingface_hub.HfApi().model_info(name, timeout=5.0)


def make_tokenizer(
    tokenizer: TokenizerSettings | PreTrainedTokenizerBase, corpus: Corpus, cache_dir: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer that a tokenizer section names; a tokenizer object is taken as it is.

    Raises:
        UserError: the tokenizer cannot be trained, loaded or used for masking.
    """
    if isinstance(tokenizer, TrainedTokenizerSettings):
        tokenizer = _trained(tokenizer, corpus, cache_dir)
    elif not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = _pretrained(tokenizer.path)
    special_ids(tokenizer)
    return tokenizer
