import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, UserError
from lookupffn.models import build_model_config
from lookupffn.vocabulary import check_tokenizer_length, own_pad_id, unused_ids, vocabulary_size

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
MODEL = {
    "name": "test", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-5,
    "initializer_range": 0.02, "sequence_length": 16, "max_positions": 16,
}  # fmt: skip


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
    config = build_model_config(MODEL, {"name": "gemm"}, made)
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
    model = LookupRobertaForMaskedLM(build_model_config(MODEL, {"name": "gemm"}, made))
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
        model = LookupRobertaForMaskedLM(build_model_config(MODEL, {"name": "lookup", "num_tables": 4}, made)).eval()
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


@pytest.mark.parametrize("length", ["512", True, 0, None, float("nan")])
def test_a_length_that_is_no_number_is_refused(length):
    made = tokenizer(ids(*ORDINARY), pad_token="<pad>", unk_token="<unk>")
    made.model_max_length = length
    with pytest.raises(UserError, match=r"somewhere: model_max_length of tokenizer_config\.json"):
        check_tokenizer_length(made, "somewhere")
