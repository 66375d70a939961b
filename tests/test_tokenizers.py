"""A tokenizer that somebody else wrote: loaded, or refused in one line before it takes time or memory; and its ids."""

import base64
import json
import os
import time

import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, UserError
from lookupffn.config.sections import read_section
from lookupffn.models import build_model_config, fit_tokenizer
from lookupffn.tokenizers import (
    _LARGEST,
    load_tokenizer,
    own_pad_id,
    unused_ids,
    vocabulary_size,
)


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
    monkeypatch.setattr("lookupffn.tokenizers._try", lambda *arguments: bytearray(2**40))
    refused(folder, "MemoryError")
    monkeypatch.setattr("lookupffn.tokenizers._try", lambda *arguments: os.abort())
    refused(folder, "crashes, or takes too much memory")


def test_time_without_bound_ends_the_child_alone(folder, monkeypatch):
    def for_ever(*arguments):
        while True:
            pass

    monkeypatch.setattr("lookupffn.tokenizers._try", for_ever)
    monkeypatch.setattr("lookupffn.tokenizers._CPU_S", 1)
    refused(folder, "takes more than 1 s")


ROLES = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
MODEL = {
    "name": "test", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-5,
    "initializer_range": 0.02, "sequence_length": 16, "max_positions": 16,
}  # fmt: skip


def model_config(ffn: str, tokenizer: PreTrainedTokenizerFast, **options: int) -> LookupRobertaConfig:
    return fit_tokenizer(build_model_config(read_section("model", MODEL), {"name": ffn, **options}), tokenizer)


def tokenizer(ids, **roles):
    """A tokenizer of words with these ids."""
    backend = Tokenizer(models.WordLevel(ids, unk_token=roles.get("unk_token", "a")))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True) for token in {*ROLES.values(), *roles.values()}])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**ROLES, **roles})


def ids(*words, **others):
    return {word: number for number, word in enumerate(words)} | others


ORDINARY = ("<s>", "<pad>", "</s>", "<unk>", "a", "b", "c", "<mask>")
WITHOUT_PAD = ("<s>", "</s>", "<unk>", "a", "b", "c", "<mask>")
CASES = {
    # name: (tokenizer, rows, padding, row of the first position)
    "ordinary": (tokenizer(ids(*ORDINARY), pad_token="<pad>", unk_token="<unk>"), 8, 1, 2),
    "none": (tokenizer(ids(*WITHOUT_PAD), unk_token="<unk>"), 7, None, 0),
    "shared with eos": (tokenizer(ids(*WITHOUT_PAD), pad_token="</s>", unk_token="<unk>"), 7, None, 0),
    "shared with unk": (tokenizer(ids(*WITHOUT_PAD), pad_token="<unk>", unk_token="<unk>"), 7, None, 0),
    "last": (tokenizer(ids(*WITHOUT_PAD, "<pad>"), pad_token="<pad>", unk_token="<unk>"), 8, 7, 0),
    "gap": (tokenizer(ids(*ORDINARY, d=20), pad_token="<pad>", unk_token="<unk>"), 21, 1, 2),
    "mask far away": (
        tokenizer(ids(*ORDINARY[:-1], **{"<mask>": 30}), pad_token="<pad>", unk_token="<unk>"), 31, 1, 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_sized_by_what_its_tokenizer_needs(case):
    made, rows, padding, first = CASES[case]
    assert (vocabulary_size(made), own_pad_id(made)) == (rows, padding)
    config = model_config("gemm", made)
    assert (config.vocab_size, config.pad_token_id, config.first_position) == (rows, padding, first)
    assert config.max_positions == 16 and config.max_position_embeddings == 16 + first
    model = LookupRobertaForMaskedLM(config)
    batch = made("a b c <mask>", return_tensors="pt")
    assert model(batch["input_ids"]).logits.shape[-1] == rows


def test_ids_without_an_entry():
    assert unused_ids(CASES["gap"][0]) == list(range(8, 20))
    assert unused_ids(CASES["ordinary"][0]) == []


@pytest.mark.parametrize("case", ["shared with eos", "shared with unk", "last", "none"])
def test_the_end_of_a_document_has_its_own_position_and_learns(case):
    made = CASES[case][0]
    model = LookupRobertaForMaskedLM(model_config("gemm", made))
    end, unknown = made.eos_token_id, made.unk_token_id
    batch = made.convert_tokens_to_ids(["<s>", "a", "</s>", "<s>", "<unk>", "b", "</s>"])
    seen = []
    model.base_model.embeddings.position_embeddings.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    import torch

    model(torch.tensor([batch]), labels=torch.tensor([batch])).loss.backward()
    # the stock way counts no position for a token that has padding's id
    first = seen[0] if seen[0].dim() == 1 else seen[0][0]
    assert first.tolist() == list(range(7))
    gradient = model.base_model.embeddings.word_embeddings.weight.grad
    assert gradient[end].abs().sum() > 0 and gradient[unknown].abs().sum() > 0


def test_padding_does_not_move_positions_whether_it_has_an_id_or_a_mask_alone():
    import torch

    for case in ("last", "shared with eos"):
        made = CASES[case][0]
        model = LookupRobertaForMaskedLM(model_config("lookup", made, num_tables=4)).eval()
        real = made.convert_tokens_to_ids(["<s>", "a", "b", "</s>"])
        alone = model(torch.tensor([real])).logits[0]
        pad = made.pad_token_id
        for left in (0, 3):
            padded = torch.tensor([[pad] * left + real + [pad] * (5 - left)])
            mask = torch.tensor([[0] * left + [1] * 4 + [0] * (5 - left)])
            logits = model(padded, attention_mask=mask).logits[0, left : left + 4]
            assert torch.allclose(logits, alone, atol=1e-5)


def test_ids_too_sparse_for_a_row_each_are_refused():
    with pytest.raises(UserError, match="an id of 1000000"):
        vocabulary_size(tokenizer(ids(*ORDINARY, d=1_000_000), pad_token="<pad>", unk_token="<unk>"))


def test_rows_before_the_first_position():
    sizes = {"vocab_size": 90, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 40}
    assert LookupRobertaConfig(**sizes, pad_token_id=1).max_positions == 38
    assert LookupRobertaConfig(**sizes, pad_token_id=None).max_positions == 40
    assert LookupRobertaConfig(**sizes, pad_token_id=80, first_position=0).max_positions == 40
    with pytest.raises(UserError, match="first_position=0"):
        LookupRobertaConfig(**sizes, pad_token_id=80)
    with pytest.raises(UserError, match="not in the vocabulary of 90"):
        LookupRobertaConfig(**sizes, pad_token_id=90)


@pytest.mark.parametrize("length", ["512", True, 0, float("nan")])
def test_a_length_that_is_no_number_is_refused(folder, length):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": length}))
    refused(folder, r"model_max_length of tokenizer_config\.json must be a number")
