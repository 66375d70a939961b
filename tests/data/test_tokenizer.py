import json
import random
import time

import pytest
import tokenizers
import transformers

from lookupffn.data.tokenizer import (
    SPECIAL_TOKENS,
    _train_backend,
    special_ids,
    tokenizer_fingerprint,
)
from lookupffn.errors import UserError
from tests.data.reading import make_tokenizer, open_corpus

from .conftest import sentences

RANDOM = random.Random(0)


@pytest.fixture
def corpus(text_data, tmp_path):
    return open_corpus(text_data, tmp_path / "cache")


def test_trained(corpus, trained, tmp_path):
    tokenizer = make_tokenizer(trained, corpus, tmp_path / "cache")
    assert (
        tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    assert 261 < len(tokenizer) <= 400
    for text in ("The model reads.", "naïve 日本 \n tabs\t", " leading"):
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2) and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("a", "b")["input_ids"].count(2) == 3  # <s> a </s></s> b </s>, as RoBERTa
    assert tokenizer("winter<mask>")["input_ids"][-2] == 4
    assert special_ids(tokenizer).all == (0, 1, 2, 3, 4)


def test_trained_is_cached_and_reproducible(corpus, trained, tmp_path, monkeypatch):
    first = make_tokenizer(trained, corpus, tmp_path / "cache")
    other = make_tokenizer(trained, corpus, tmp_path / "cache2")
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(other)
    monkeypatch.setattr("lookupffn.data.tokenizer.train_tokenizer", pytest.fail)
    again = make_tokenizer(trained, corpus, tmp_path / "cache")
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(first)


def test_the_merges_are_announced(corpus, caplog):
    caplog.set_level("INFO")
    _train_backend(corpus, 400, 10**6)
    assert "learning 139 merges" in caplog.text


def test_round_trip(corpus, trained, tmp_path):
    tokenizer = make_tokenizer(trained, corpus, tmp_path / "cache")
    tokenizer("some text", truncation=True, max_length=4, padding="max_length")  # leaves its mark on the backend
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    assert loaded("A text <mask> here")["input_ids"] == tokenizer("A text <mask> here")["input_ids"]
    pretrained = make_tokenizer({"name": "pretrained", "path": str(tmp_path / "saved")}, corpus, tmp_path / "cache")
    assert tokenizer_fingerprint(pretrained) == tokenizer_fingerprint(tokenizer)
    assert make_tokenizer(loaded, corpus, tmp_path / "cache") is loaded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "train"}, "did you mean 'trained'"),
        ({"name": "trained", "vocab": 400}, "option of tokenizer 'trained'.*vocab_size"),
        ({"name": "trained", "vocab_size": 200}, "vocab_size must be a whole number of at least 262, not 200"),
        ({"name": "trained", "vocab_size": "many"}, "vocab_size must be .*not 'many'"),
        ({"name": "trained", "vocab_size": 400.5}, r"vocab_size must be .*not 400\.5"),
        ({"name": "trained", "vocab_size": 400, "max_characters": -1}, "max_characters must be .*not -1"),
        ({"name": "trained", "vocab_size": 400, "max_characters": 0}, "max_characters must be .*not 0"),
        (
            {"name": "trained", "vocab_size": 400, "max_characters": "all"},
            "max_characters must be .* or null .all., not 'all'",
        ),
        ({"name": "pretrained", "path": None}, r"needs tokenizer\.path"),
        ({"name": "pretrained", "path": "./no/such/folder"}, "no folder"),
    ],
)
def test_bad_options(corpus, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_tokenizer(options, corpus, tmp_path / "cache")


def test_offline(corpus, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"cannot load the tokenizer roberta-base .*tokenizer=trained") as caught:
        make_tokenizer({"name": "pretrained", "path": "roberta-base"}, corpus, tmp_path)
    assert time.monotonic() - start < 10 and "\n" not in str(caught.value)


def test_folder_without_a_tokenizer_and_tokenizer_without_mask(corpus, tmp_path):
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        make_tokenizer({"name": "pretrained", "path": str(tmp_path)}, corpus, tmp_path)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    with pytest.raises(UserError, match="no mask token"):
        make_tokenizer(plain, corpus, tmp_path)
    plain.add_special_tokens({"mask_token": "<mask>"})
    plain.bos_token = plain.eos_token = None
    with pytest.raises(UserError, match="beginning and end"):
        make_tokenizer(plain, corpus, tmp_path)


class Texts:
    """A corpus of given documents."""

    def __init__(self, *documents):
        self._documents = documents

    def documents(self, split):
        return iter(self._documents)

    def characters(self, split):
        return sum(map(len, self._documents))


@pytest.mark.parametrize("run", ["=" * 200_000, "a" + " " * 200_000 + "b", "".join(RANDOM.choices("ACGT", k=50_000))])
def test_the_time_for_an_unbroken_run_is_in_proportion_to_it(run):
    """100,000 signs of one kind took 8 seconds, twice as many four times as long."""
    start = time.monotonic()
    backend = tokenizers.Tokenizer.from_str(_train_backend(Texts(run), 400, 10**9))
    assert time.monotonic() - start < 10
    assert backend.decode(backend.encode(run, add_special_tokens=False).ids) == run


def test_ordinary_text_has_the_tokenizer_of_the_plain_algorithm(monkeypatch):
    texts = Texts(*sentences(200), "=" * 1024, "x" * 1023 + " " + "-" * 300)
    cut = _train_backend(texts, 500, 10**9)
    monkeypatch.setattr("lookupffn.data.tokenizer._LONGEST_RUN", 50_000)
    assert _train_backend(texts, 500, 10**9) == cut
    assert json.loads(cut)["pre_tokenizer"]["type"] == "ByteLevel"


@pytest.mark.parametrize("role", ["pad_token", "unk_token", "eos_token", "bos_token"])
def test_a_mask_token_that_means_something_else_too_is_refused(corpus, tmp_path, role):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", role: "<mask>"}
    with pytest.raises(UserError, match="uses its mask token '<mask>' for something else too"):
        make_tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **roles), corpus, tmp_path)


def test_padding_may_share_an_id_with_the_end(corpus, tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    roles = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "pad_token": "</s>"}
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    assert make_tokenizer(made, corpus, tmp_path) is made
