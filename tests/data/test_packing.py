import json
import os
import pickle
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from lookupffn.data import PackedTokens, packing
from lookupffn.errors import UserError

BEGIN, END = 256, 257


@pytest.fixture(scope="module")
def backend():
    """Every byte is a token, so that what is packed can be told from the text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def write(folder, documents, backend, **changes):
    folder.mkdir(exist_ok=True)
    arguments = {"begin": BEGIN, "end": END, "vocab_size": 258, "what": "train split", "processes": 1}
    packing.write_tokens(folder, documents, backend, **(arguments | changes))
    return folder


@given(st.text(alphabet="ab \n", max_size=300))
def test_pieces_join_to_the_document_and_end_before_spaces(document):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_PIECE_CHARACTERS", 20)
        pieces = list(packing._pieces(document))
    assert "".join(pieces) == document
    assert all(len(piece) <= 20 for piece in pieces)
    for piece, following in pairwise(pieces):
        assert following.startswith(" ") or " " not in piece[1:]


def test_each_document_stands_between_its_separators(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_CHARACTERS", 12)
    monkeypatch.setattr(packing, "_PIECE_CHARACTERS", 5)
    documents = ["one", "a longer document of pieces", "naïve </s>", "z"]
    folder = write(tmp_path / "entry", iter(documents), backend, processes=2)
    tokens = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
    starts, ends = np.flatnonzero(tokens == BEGIN), np.flatnonzero(tokens == END)
    assert starts[0] == 0 and ends[-1] == len(tokens) - 1
    assert np.array_equal(starts[1:], ends[:-1] + 1)
    assert [backend.decode(tokens[a + 1 : b].tolist()) for a, b in zip(starts, ends, strict=True)] == documents
    assert np.array_equal(np.load(folder / "counts.npy"), np.bincount(tokens, minlength=258))
    index = json.loads((folder / "index.json").read_text())
    assert index["documents"] == 4 and index["tokens"] == len(tokens)
    assert index["characters"] == sum(map(len, documents))
    assert sorted(os.listdir(folder)) == ["counts.npy", "index.json", "tokens.bin"]


def test_counts_do_not_depend_on_blocks(backend, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_COUNT_BLOCK", 7)
    folder = write(tmp_path / "entry", ["some text to count"] * 5, backend)
    tokens = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
    assert np.array_equal(np.load(folder / "counts.npy"), np.bincount(tokens, minlength=258))


def test_goes_on_where_the_journal_says(backend, tmp_path):
    documents = [f"document {i}" for i in range(9)]
    whole = write(tmp_path / "whole", documents, backend)
    part = write(tmp_path / "part", documents[:4], backend)
    index = json.loads((part / "index.json").read_text())
    (part / "journal.json").write_text(json.dumps({key: index[key] for key in ("documents", "tokens", "characters")}))
    with open(part / "tokens.bin", "ab") as file:
        file.write(b"written after the journal")
    write(part, documents, backend)
    for name in ("tokens.bin", "counts.npy", "index.json"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    assert not (part / "journal.json").exists()


def test_no_documents(backend, tmp_path):
    with pytest.raises(UserError, match="the train split is empty"):
        write(tmp_path / "entry", [], backend)


def test_a_large_vocabulary_takes_four_bytes(backend, tmp_path):
    folder = write(tmp_path / "entry", ["a text of some length"], backend, begin=70_000, vocab_size=80_000)
    packed = PackedTokens(folder, 8)
    assert packed.tokens.dtype == np.uint32 and packed.tokens[0, 0] == 70_000
    assert len(np.load(folder / "counts.npy")) == 80_000


def test_sequences_are_cut_from_the_stream(backend, tmp_path):
    folder = write(tmp_path / "entry", ["x" * 28], backend)  # 30 tokens with separators
    assert PackedTokens(folder, 8).tokens.shape == (3, 8)
    assert len(PackedTokens(folder, 30)) == 1
    with pytest.raises(UserError, match="the train split has 30 tokens, fewer than one sequence of 31"):
        PackedTokens(folder, 31)


def test_sequences_with_too_few_ordinary_tokens_are_left_out(backend, tmp_path):
    folder = write(tmp_path / "entry", ["x" * 14, "y", "y", "y", "y", "y", "z" * 14], backend)
    packed = PackedTokens(folder, 16)
    special = np.zeros(258, dtype=bool)
    special[[BEGIN, END]] = True
    kept = packed.with_ordinary(special, 6)
    assert len(packed) == 2 and packed.with_ordinary(special, 5) is packed
    assert len(kept) == 1 and kept.tokens.shape == (1, 16) and kept.tokens.dtype == np.uint16
    for same in (kept, pickle.loads(pickle.dumps(kept))):
        assert np.array_equal(same.tokens[np.array([0])], packed.tokens[:1])
    assert len(packed.with_ordinary(special, 15)) == 0
