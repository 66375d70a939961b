import json
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pytest
import transformers

from lookupffn.data import Masker, packing, training_batches
from lookupffn.errors import UserError
from tests.data.reading import prepare_data

from .conftest import sentences, write_jsonl


def flat(packed):
    return np.fromfile(packed.entry / "tokens.bin", dtype=packed.tokens.dtype)


def test_what_is_prepared(text_data, trained, tmp_path):
    prepared = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    train, tokenizer = prepared.train, prepared.tokenizer
    assert train.tokens.shape == (len(train), 32) and train.tokens.dtype == np.uint16
    tokens = flat(train)
    assert len(train) == len(tokens) // 32  # the last partial sequence is dropped
    assert np.array_equal(train.tokens.ravel(), tokens[: len(train) * 32])
    documents = tokenizer.decode(tokens).removeprefix("<s>").removesuffix("</s>").split("</s><s>")
    assert documents == sentences(200)
    assert prepared.token_counts.dtype == np.int64 and len(prepared.token_counts) == len(tokenizer)
    ordinary = tokens[~np.isin(tokens, tokenizer.all_special_ids)]
    assert np.array_equal(prepared.token_counts, np.bincount(ordinary, minlength=len(tokenizer)))
    assert (tokens == tokenizer.bos_token_id).sum() == 200  # which the counts leave out
    int(prepared.data_fingerprint, 16), int(prepared.tokenizer_fingerprint, 16)
    with pytest.raises(ValueError):
        train.tokens[0, 0] = 1  # read-only
    copy = pickle.loads(pickle.dumps(train))
    assert np.array_equal(copy.tokens, train.tokens)
    assert len(pickle.dumps(train)) < 1000


def test_process_count_changes_nothing(text_data, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 1000)
    one, two = (prepare_data(text_data, trained, tmp_path / f"cache{n}", num_processes=n) for n in (1, 2))
    assert (one.data_fingerprint, one.tokenizer_fingerprint) == (two.data_fingerprint, two.tokenizer_fingerprint)
    assert np.array_equal(flat(one.train), flat(two.train))


def test_second_run_skips_preparation(text_data, trained, tmp_path, monkeypatch, caplog):
    first = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    monkeypatch.setattr(packing, "write_tokens", pytest.fail)
    monkeypatch.setattr("lookupffn.data.corpus.text.read_documents", pytest.fail)
    caplog.set_level("INFO")
    second = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    assert second.data_fingerprint == first.data_fingerprint
    assert caplog.text.count("preparation skipped") == 2
    longer = prepare_data(
        {**text_data, "sequence_length": 64}, trained, tmp_path / "cache"
    )  # the same tokens, cut anew
    assert longer.train.sequence_length == 64 and longer.data_fingerprint != first.data_fingerprint


def test_evaluation_sees_the_same_data(text_data, trained, tmp_path):
    prepared = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    prepared.tokenizer.save_pretrained(tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    evaluated = prepare_data(text_data, tokenizer, tmp_path / "elsewhere", splits=("validation",), num_processes=1)
    assert evaluated.train is None and evaluated.token_counts is None
    assert evaluated.data_fingerprint == prepared.data_fingerprint
    assert np.array_equal(evaluated.validation.tokens, prepared.validation.tokens)
    # with the validation files alone the masks (first half of the fingerprint) still are the same
    alone = prepare_data({**text_data, "train_files": None}, tokenizer, tmp_path / "elsewhere", splits=("validation",))
    assert alone.data_fingerprint[:16] == prepared.data_fingerprint[:16]
    assert prepare_data(text_data, trained, tmp_path / "cache", splits=("train",)).validation is None


def test_special_tokens_in_the_text_are_text(text_data, trained, tmp_path):
    tokenizer = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1).tokenizer
    text_data["validation_files"] = write_jsonl(tmp_path / "v.jsonl", ["Set <mask> and </s> as <pad>."] * 20)
    tokens = flat(prepare_data(text_data, tokenizer, tmp_path / "cache", splits=("validation",)).validation)
    assert tokenizer.mask_token_id not in tokens and tokenizer.pad_token_id not in tokens
    assert (tokens == tokenizer.eos_token_id).sum() == 20


def test_what_cannot_be_masked_is_left_out_at_preparation(text_data, trained, tmp_path, caplog):
    """Such a sequence used to end the run on the step that drew it."""
    tokenizer = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1).tokenizer
    text_data["train_files"] = write_jsonl(tmp_path / "t.jsonl", [*sentences(50), *["e"] * 60, *sentences(50, seed=2)])
    text_data["mask_rate"] = 0.4
    prepared = prepare_data(text_data, tokenizer, tmp_path / "cache", num_processes=1)
    packed = prepared.train
    (warning,) = (record.getMessage() for record in caplog.records if "left out" in record.getMessage())
    whole = len(flat(packed)) // 32
    assert f"{whole - len(packed)} of the {whole:,} sequences of the train split have fewer than 13 tokens" in warning
    masker = Masker(len(tokenizer), tokenizer.mask_token_id, tokenizer.all_special_ids, 0.4)
    steps = training_batches(packed, masker, seed=0, batch_size=4, start_step=0, end_step=whole // 2)
    assert sum(len(batch.labels) for step in steps for batch in step) == 4 * (whole // 2)
    text_data["train_files"] = write_jsonl(tmp_path / "e.jsonl", ["e"] * 200)
    with pytest.raises(UserError, match=r"the 18 sequences of the train split .* lower data\.mask_rate"):
        prepare_data(text_data, tokenizer, tmp_path / "cache", num_processes=1)


def test_long_documents_are_encoded_whole(text_data, trained, tmp_path, monkeypatch):
    tokenizer = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1).tokenizer
    monkeypatch.setattr(packing, "_PIECE_CHARACTERS", 50)
    text = " ".join(sentences(20)) + "x" * 200
    text_data["validation_files"] = write_jsonl(tmp_path / "v.jsonl", [text])
    tokens = flat(prepare_data(text_data, tokenizer, tmp_path / "cache", splits=("validation",)).validation)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    cut = len(tokenizer.encode(" ".join(sentences(20)))) - 2
    assert tokens[:cut].tolist() == tokenizer.encode(text)[:cut]


def test_damaged_cache_is_prepared_again(text_data, trained, tmp_path, caplog):
    first = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    expected = flat(first.train)
    path = first.train.entry / "tokens.bin"
    del first
    os.truncate(path, 100)
    second = prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    assert np.array_equal(flat(second.train), expected)
    assert "train split of data=text is damaged" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_length": 100_000}, "fewer than one sequence"),
        ({"sequence_length": None}, "sequence_length must be a whole number of at least 8"),
        ({"sequence_length": 4}, "at least 8"),
        ({"validation_files": None, "validation_fraction": 0}, r"no validation split: give data\.validation_files"),
        ({"train_files": None}, "needs text to train on|no train split"),
        ({"name": "txt"}, "did you mean 'text'"),
        ({"train_files": 3}, r"train_files must be a list of text or text or null, not 3"),
        ({"mask_rate": "often"}, r"data\.mask_rate must be a number above 0 and below 1, not 'often'"),
        ({"mask_rate": 1.5}, r"data\.mask_rate must be .*not 1\.5"),
        ({"mask_rate": 0.001}, "masks nothing in sequences of 32"),
        ({"validation_fraction": "some"}, r"data\.validation_fraction must be a number from 0 to below 1, not 'some'"),
        ({"validation_fraction": 1}, r"data\.validation_fraction must be .*not 1"),
    ],
)
def test_bad_data(text_data, trained, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        prepare_data({**text_data, **change}, trained, tmp_path / "cache", num_processes=1)
    assert "\n" not in str(caught.value)


def test_invalid_utf8_is_reported_once_a_preparation(text_data, trained, tmp_path, caplog):
    with open(text_data["train_files"], "ab") as file:
        file.write(b'{"text": "half a pair \\ud800 and a byte \xff in a long sentence"}\n')
    (tmp_path / "more.txt").write_bytes(b"the model reads \xff\xfe birds\n")
    text_data["train_files"] = [text_data["train_files"], str(tmp_path / "more.txt")]
    text_data["validation_files"] = None  # both splits and the tokenizer read the same files
    prepare_data(text_data, trained, tmp_path / "cache", num_processes=1)
    (warning,) = (record.getMessage() for record in caplog.records if "UTF-8" in record.getMessage())
    assert warning.startswith("4 invalid UTF-8 sequences")
    assert "train.jsonl (2)" in warning and "more.txt (2)" in warning


def test_empty_corpus_and_bad_line(text_data, trained, tmp_path):
    empty = write_jsonl(tmp_path / "empty.jsonl", ["", "  "])
    with pytest.raises(UserError, match="train split of data=text is empty"):
        prepare_data({**text_data, "train_files": empty}, trained, tmp_path / "cache")
    with pytest.raises(UserError, match="validation split of data=text is empty"):
        prepare_data({**text_data, "validation_files": empty}, trained, tmp_path / "cache")
    (tmp_path / "bad.jsonl").write_text('{"text": "good words here"}\n{"text"\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2"):
        prepare_data({**text_data, "validation_files": str(tmp_path / "bad.jsonl")}, trained, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.partial"))


def _prepare(data, tokenizer, cache_dir, results):
    prepared = prepare_data(data, tokenizer, cache_dir, num_processes=1)
    results.put((prepared.data_fingerprint, len(prepared.train)))


def test_two_runs_at_once(text_data, trained, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    runs = [context.Process(target=_prepare, args=(text_data, trained, tmp_path / "cache", results)) for _ in range(2)]
    for run in runs:
        run.start()
    assert results.get(timeout=60) == results.get(timeout=60)
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    assert len(list((tmp_path / "cache" / "tokens").glob("*/tokens.bin"))) == 2
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_an_interrupted_packing_goes_on(text_data, trained, tmp_path, monkeypatch):
    expected = prepare_data(text_data, trained, tmp_path / "whole", num_processes=1)
    tokenizer = expected.tokenizer
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 1000)
    monkeypatch.setattr(packing, "_JOURNAL_CHARACTERS", 3000)
    original = packing.ordered_map

    def interrupted(*args, **kwargs):
        for number, result in enumerate(original(*args, **kwargs)):
            if number == 20:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "ordered_map", interrupted)
        prepare_data(text_data, tokenizer, tmp_path / "cache", num_processes=1)
    (journal,) = (tmp_path / "cache").rglob("journal.json")
    done = json.loads(journal.read_text())
    assert 0 < done["documents"] < 200
    encoded = []
    monkeypatch.setattr(packing, "_batches", lambda documents: encoded.append(list(documents)) or iter([encoded[-1]]))
    resumed = prepare_data(text_data, tokenizer, tmp_path / "cache", num_processes=1)
    assert len(encoded[0]) == 200 - done["documents"]
    assert np.array_equal(flat(resumed.train), flat(expected.train))
    assert resumed.data_fingerprint == expected.data_fingerprint


@pytest.mark.parametrize("journal", ["{", "[]", '{"documents": -1, "tokens": 0, "characters": 0}', '{"documents": 1}'])
def test_a_damaged_journal_starts_from_nothing(tmp_path, caplog, journal):
    path = tmp_path / "journal.json"
    path.write_text(journal)
    assert packing._read_journal(path) == {"documents": 0, "tokens": 0, "characters": 0}
    assert "packing from the start" in caplog.text


def _prepare_for_ever(data, tokenizer, cache_dir, ready):
    def documents(self, split):
        number = 0
        while True:
            number += 1
            if number == 5000:
                ready.set()
            yield f"document {number}"

    from lookupffn.data.corpus.text import TextCorpus

    TextCorpus.documents = documents
    prepare_data(data, tokenizer, cache_dir, num_processes=2)


def test_a_killed_run_blocks_nobody(text_data, trained, tmp_path):
    tokenizer = prepare_data(text_data, trained, tmp_path / "other", num_processes=1).tokenizer
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    run = context.Process(target=_prepare_for_ever, args=(text_data, tokenizer, tmp_path / "cache", ready))
    run.start()
    assert ready.wait(30)
    os.kill(run.pid, signal.SIGKILL)
    run.join(10)
    start = time.monotonic()
    prepare_data(text_data, tokenizer, tmp_path / "cache", num_processes=1)  # its workers do not keep the lock
    assert time.monotonic() - start < 15


def _prepare_on_a_small_disk(data, tokenizer, cache_dir, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        prepare_data(data, tokenizer, cache_dir, num_processes=1)
    except UserError as error:
        results.put(str(error))


def test_full_disk(text_data, trained, tmp_path):
    tokenizer = prepare_data(text_data, trained, tmp_path / "other", num_processes=1).tokenizer
    text_data["train_files"] = write_jsonl(tmp_path / "more.jsonl", sentences(2000))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    run = context.Process(target=_prepare_on_a_small_disk, args=(text_data, tokenizer, tmp_path / "cache", results))
    run.start()
    message = results.get(timeout=60)
    run.join(10)
    assert "the cache is left as it was" in message and "\n" not in message
    assert [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()] == []
