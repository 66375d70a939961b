"""A tokenizer that somebody else wrote is loaded or refused in one line, before it takes time or memory."""

import base64
import json
import os
import time

import pytest
import tokenizers
import transformers

from lookupffn.errors import UserError
from lookupffn.tokenizer_files import _LARGEST, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKC(), tokenizers.normalizers.Replace("``", '"'), tokenizers.normalizers.Prepend("_")]
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, **changes):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, message, seconds=20):
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(folder)
    assert time.monotonic() - start < seconds
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_good_one_is_loaded(folder):
    assert load_tokenizer(folder).mask_token == "<mask>"


def precompiled(content):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def test_a_bad_charsmap_panics_in_a_child_only(folder, capfd):
    for content in (b"\xff\xff\xff\x7f" + b"abc" * 50, b"\1\2"):
        rewrite(folder, normalizer=precompiled(content))
        refused(folder, "cannot load the tokenizer")
    assert capfd.readouterr() == ("", "")  # a panic prints lines of its own


@pytest.mark.parametrize("pattern", [{"String": "a"}, {"Regex": "a"}])
def test_normalizers_that_multiply_the_text_are_refused(folder, pattern):
    doubling = {"type": "Replace", "pattern": pattern, "content": "aa"}
    nested = {"type": "Sequence", "normalizers": [doubling] * 20}
    rewrite(folder, normalizer={"type": "Sequence", "normalizers": [nested, {"type": "NFC"}, nested]})
    refused(folder, r"its normalizers make a text 1e\+(12|19) times as long", seconds=5)
    rewrite(folder, normalizer={"type": "Sequence", "normalizers": [doubling] * 3})
    load_tokenizer(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 100_000, '{"normalizer": {"type": "Replace"}}', '{"normalizer": 3}']
)
def test_damaged_json(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "cannot load the tokenizer")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_what_is_no_file_is_not_opened(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, f"{name} is not an ordinary file", seconds=5)
    (folder / name).unlink()
    os.symlink("/dev/zero", folder / name)
    refused(folder, f"{name} is not an ordinary file", seconds=5)


def test_too_large_a_file(folder):
    os.truncate(folder / "tokenizer.json", _LARGEST + 1)
    refused(folder, r"tokenizer\.json has 268,435,457 bytes", seconds=5)


def test_memory_without_bound_ends_the_child_alone(folder, monkeypatch):
    monkeypatch.setattr("lookupffn.tokenizer_files._try", lambda *arguments: bytearray(2**40))
    refused(folder, "MemoryError")
    monkeypatch.setattr("lookupffn.tokenizer_files._try", lambda *arguments: os.abort())
    refused(folder, "crashes, or takes too much memory")


def test_time_without_bound_ends_the_child_alone(folder, monkeypatch):
    def for_ever(*arguments):
        while True:
            pass

    monkeypatch.setattr("lookupffn.tokenizer_files._try", for_ever)
    monkeypatch.setattr("lookupffn.tokenizer_files._CPU_S", 1)
    refused(folder, "takes more than 1 s")
