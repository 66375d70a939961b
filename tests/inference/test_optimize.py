import copy
import logging

import pytest
import torch

from lookupffn import (
    LookupRobertaConfig,
    LookupRobertaForMaskedLM,
    LookupRobertaForMultipleChoice,
    LookupRobertaForQuestionAnswering,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
    LookupRobertaModel,
    UserError,
)
from lookupffn.inference import native as native_module
from lookupffn.inference import optimize
from lookupffn.inference.native import served_levels

CLASSES = (
    LookupRobertaModel,
    LookupRobertaForMaskedLM,
    LookupRobertaForSequenceClassification,
    LookupRobertaForTokenClassification,
)
FFNS = ({"name": "gemm"}, {"name": "none"}, {"name": "lookup", "num_tables": 24}, {"name": "low_rank", "rank": 16})
# of the norm of all outputs: one rounding to 8 bits is 0.4% of a row's largest number, and a flipped code moves a row
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.05}


def model(cls=LookupRobertaModel, ffn=None, **sizes):
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 112} | sizes
    config = LookupRobertaConfig(
        **sizes,
        num_hidden_layers=2,
        vocab_size=200,
        max_position_embeddings=150,
        type_vocab_size=2,
        initializer_range=0.1,
        ffn=ffn or {"name": "gemm"},
    )
    return cls(config).eval()


def batch(shape, pad=1):
    """Sequences of random lengths, each padded."""
    ids = torch.randint(5, 200, shape)
    lengths = torch.randint(1, shape[1] + 1, shape[:1])
    lengths[0] = shape[1]
    mask = (torch.arange(shape[1]) < lengths[:, None]).long()
    return ids.masked_fill(mask == 0, pad), mask


def first_output(outputs, mask):
    """Without what padding gives, which is nobody's business."""
    out = outputs[0].float()
    return out * mask[..., None] if out.shape[:2] == mask.shape else out


def relative_error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("precision", optimize.PRECISIONS)
@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: ffn["name"])
@pytest.mark.parametrize("cls", CLASSES)
def test_outputs_are_those_of_the_model(cls, ffn, precision):
    plain = model(cls, ffn)
    fast = copy.deepcopy(plain)
    assert fast.optimize_for_inference(precision) is fast
    expected, outputs = [], []
    for shape in ((1, 1), (3, 17), (2, 70), (5, 120)):  # few rows, and blocks of rows
        ids, mask = batch(shape)
        with torch.no_grad():
            expected.append(first_output(plain(ids, attention_mask=mask), mask))
            outputs.append(first_output(fast(ids, attention_mask=mask), mask))
        assert outputs[-1].shape == expected[-1].shape
    # codes near a hyperplane flip: few of them, but sentence classes are few numbers
    flips = ffn["name"] == "lookup" and precision != "float32"
    tolerance = 0.25 if flips and cls is LookupRobertaForSequenceClassification else TOLERANCE[precision]
    assert relative_error(*(torch.cat([t.flatten() for t in ts]) for ts in (outputs, expected))) <= tolerance


@pytest.mark.parametrize(
    "heads,hidden,intermediate", [(1, 16, 16), (3, 48, 80), (2, 96, 208), (1, 80, 400), (4, 320, 64)]
)
def test_int8_at_odd_sizes(native, heads, hidden, intermediate):
    plain = model(hidden_size=hidden, num_attention_heads=heads, intermediate_size=intermediate)
    fast = copy.deepcopy(plain).optimize_for_inference("int8")
    assert isinstance(fast.forward.encoder, optimize.NativeEncoder)
    for shape in ((2, 9), (4, 90)):
        ids, mask = batch(shape)
        expected = first_output(plain(ids, attention_mask=mask), mask)
        assert relative_error(first_output(fast(ids, attention_mask=mask), mask), expected) <= TOLERANCE["int8"]


def test_every_instruction_set_gives_the_same_numbers(native, monkeypatch):
    plain = model(LookupRobertaForMaskedLM)
    ids, mask = batch((4, 60))
    levels = served_levels()
    assert "plain" in levels
    results = []
    for level in levels:
        monkeypatch.setenv("LOOKUPFFN_INT8", level)
        fast = copy.deepcopy(plain).optimize_for_inference("int8")
        results.append(fast(ids, attention_mask=mask).logits[mask.bool()])
    for level, result in zip(levels, results, strict=True):
        # sums are exact; floats around them may be contracted differently for strips of another height
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5, msg=level)


def test_attention_in_float32_is_closer_than_in_bfloat16(native):
    plain = model(ffn={"name": "none"})
    ids, mask = batch((3, 100))
    expected = first_output(plain(ids, attention_mask=mask), mask)
    errors = [
        relative_error(optimize.NativeEncoder(plain, exact_attention=exact).encode(ids, mask), expected)
        for exact in (False, True)
    ]
    assert max(errors) <= TOLERANCE["int8"]
    assert errors[1] <= errors[0] * 1.05


@pytest.mark.parametrize("precision", optimize.PRECISIONS)
def test_padding_changes_nothing_and_gives_zeros(precision):
    fast = model(ffn={"name": "lookup", "num_tables": 8}).optimize_for_inference(precision)
    ids, mask = batch((4, 50))
    together = fast(ids, attention_mask=mask).last_hidden_state
    assert not together[mask == 0].any()
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = fast(ids[row : row + 1, :length]).last_hidden_state[0]
        torch.testing.assert_close(together[row, :length], alone, rtol=0.05, atol=0.05)
    holes = torch.rand(4, 50) < 0.5
    holes[:, 0] = True
    assert not fast(ids, attention_mask=holes).last_hidden_state[~holes].any()


@pytest.mark.parametrize("precision", optimize.PRECISIONS)
def test_positions_types_and_tuples_as_in_the_model(precision):
    plain = model()
    fast = copy.deepcopy(plain).optimize_for_inference(precision)
    ids = torch.randint(5, 200, (2, 12))
    given = {"token_type_ids": torch.randint(0, 2, (2, 12)), "position_ids": torch.arange(20, 32)[None]}
    expected = plain(ids, **given).last_hidden_state
    (out, pooled) = fast(ids, **given, return_dict=False)
    assert relative_error(out, expected) <= TOLERANCE[precision]
    assert pooled.shape == (2, 64)


@pytest.mark.parametrize(
    "cls,shape", [(LookupRobertaForQuestionAnswering, (3, 20)), (LookupRobertaForMultipleChoice, (2, 4, 12))]
)
def test_spans_and_choices(cls, shape):
    plain = model(cls)
    fast = copy.deepcopy(plain).optimize_for_inference("int8")
    ids = torch.randint(5, 200, shape)
    expected, out = plain(ids, attention_mask=torch.ones_like(ids)), fast(ids, attention_mask=torch.ones_like(ids))
    assert relative_error(out[0], expected[0]) <= TOLERANCE["int8"]


def test_loss_and_masked_positions_of_the_language_model():
    plain = model(LookupRobertaForMaskedLM)
    fast = copy.deepcopy(plain).optimize_for_inference("int8")
    ids = torch.randint(5, 200, (4, 30))
    positions, labels = torch.randint(0, 30, (4, 5)), torch.randint(5, 200, (4, 5))
    expected = plain(ids, masked_positions=positions, labels=labels)
    out = fast(ids, masked_positions=positions, labels=labels)
    assert out.logits.shape == expected.logits.shape
    assert abs(out.loss - expected.loss) < 0.05


@pytest.mark.parametrize("precision", optimize.PRECISIONS)
def test_saving_gives_the_float_weights(precision, tmp_path):
    plain = model(LookupRobertaForMaskedLM, {"name": "lookup", "num_tables": 8})
    fast = copy.deepcopy(plain).optimize_for_inference(precision)
    fast.save_pretrained(tmp_path)
    loaded = LookupRobertaForMaskedLM.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_an_optimised_model_refuses_what_it_cannot_do():
    fast = model(LookupRobertaForMaskedLM).optimize_for_inference("int8")
    ids = torch.randint(5, 200, (2, 12))
    assert fast.eval() is fast
    for refused in (
        fast.train,
        fast.base_model.train,
        lambda: fast.load_state_dict(fast.state_dict()),
        lambda: fast(ids, output_attentions=True),
        lambda: fast(inputs_embeds=torch.randn(2, 12, 64)),
        lambda: fast(ids, attention_mask=torch.ones(2, 11)),
        lambda: fast.optimize_for_inference("int4"),
    ):
        with pytest.raises(UserError) as error:
            refused()
        assert "\n" not in str(error.value)
    assert not any(p.requires_grad for p in fast.parameters())


@pytest.mark.parametrize("ids", [[[5, 200]], [[5, -1]], [[5] * 149]], ids=["above", "below", "long"])
def test_tokens_that_the_model_does_not_have(native, ids):
    fast = model().optimize_for_inference("int8")
    with pytest.raises((UserError, RuntimeError), match=r"vocabulary|positions"):
        fast(torch.tensor(ids))


def test_numbers_that_are_not_finite_reach_the_output(native):
    plain = model()
    with torch.no_grad():
        plain.encoder.layer[0].attention.output.dense.bias[3] = torch.nan
    assert plain.optimize_for_inference("int8")(torch.tensor([[7, 8, 9]])).last_hidden_state.isnan().all()


def test_optimising_again_changes_the_precision():
    plain = model(LookupRobertaForMaskedLM)
    ids = torch.randint(5, 200, (2, 12))
    expected = plain(ids).logits
    fast = copy.deepcopy(plain).optimize_for_inference("int8")
    assert relative_error(fast(ids).logits, expected) <= TOLERANCE["int8"]
    fast.optimize_for_inference("float32")
    torch.testing.assert_close(fast(ids).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "sizes,reason",
    [
        ({"ffn": {"name": "yoso"}}, "ffn=yoso"),
        ({"num_attention_heads": 8}, "heads of 8 columns"),
        ({"ffn": {"name": "gemm", "hidden_act": "tanh"}}, "activation tanh"),
        ({"intermediate_size": 100}, "intermediate_size 100"),
    ],
)
def test_what_int8_does_not_take_runs_in_float32_and_says_so_once(sizes, reason, caplog):
    plain = model(**sizes)
    with caplog.at_level(logging.WARNING):
        fast = copy.deepcopy(plain).optimize_for_inference("int8")
    (record,) = [r for r in caplog.records if "float32 runs instead" in r.message]
    assert reason in record.message
    ids, mask = batch((3, 20))
    expected = first_output(plain(ids, attention_mask=mask), mask)
    assert relative_error(first_output(fast(ids, attention_mask=mask), mask), expected) <= TOLERANCE["float32"]


def test_without_a_compiler_float32_runs(monkeypatch, caplog):
    monkeypatch.setattr(native_module.LIBRARY, "unavailable_reason", lambda: "no C++ compiler (g++ or clang++)")
    fast = model().optimize_for_inference("int8")
    assert "no C++ compiler" in caplog.text
    assert fast.forward.encoder.precision == "float32"
