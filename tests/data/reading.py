"""Functions of the data room, with sections as a user types them."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lookupffn import data
from lookupffn.config.data import data_settings, task_settings
from lookupffn.config.sections import TOKENIZERS, TokenizerSettings, read_choice
from lookupffn.data import PreparedData, corpus, labelled, tokenizer

Section = dict[str, Any]


def open_corpus(section: Section, *more: Any) -> corpus.Corpus:
    return corpus.open_corpus(data_settings(section), *more)


def prepare_data(
    section: Section, tokenizer: Section | PreTrainedTokenizerBase, cache_dir: Path, **more: Any
) -> PreparedData:
    return data.prepare_data(data_settings(section), _settings(tokenizer), cache_dir, **more)


def make_tokenizer(
    section: Section | PreTrainedTokenizerBase, text: corpus.Corpus, cache_dir: Path
) -> PreTrainedTokenizerBase:
    return tokenizer.make_tokenizer(_settings(section), text, cache_dir)


def load_task(section: Section) -> labelled.LabelledData:
    return labelled.load_task(task_settings(section))


def _settings(section: Section | PreTrainedTokenizerBase) -> TokenizerSettings | PreTrainedTokenizerBase:
    return read_choice("tokenizer", section, TOKENIZERS) if isinstance(section, dict) else section
