import pytest

from lookupffn.report import evaluation_table, run_table
from lookupffn.report.summary_table import duration

FIGURES = {
    "ffn": "lookup",
    "ffn_options": {"num_tables": 32, "block_size": None},
    "validation_loss": 3.0,
    "validation_perplexity": 20.0855,
    "unigram_perplexity": 906.9,
    "ffn_flops_per_token": 1e6,
    "gemm_ffn_flops_per_token": 6.5e6,
    "ffn_parameters": 2_000_000,
    "parameters": 3_000_000,
    "tokens_per_s": 12345.6,
    "device": "cpu",
}


def test_run_table():
    summary = FIGURES | {"plateau_exit_step": 500, "tokens": 4096, "steps": 10, "wall_clock_s": 65.2}
    text = run_table(summary, "outputs/x")
    for part in ("lookup (num_tables 32)", "20.09 (unigram: 906.9)", "1.000 in all layers, 6.5 times fewer", "500",
                 "2,000,000 in FFNs, 3,000,000", "12,346 tokens/s on cpu", "1 min 05 s", "outputs/x"):  # fmt: skip
        assert part in text
    assert "not yet" in run_table(summary | {"plateau_exit_step": None}, "x")
    assert "times fewer" not in run_table(summary | {"ffn_flops_per_token": 6.5e6}, "x")
    assert all(line.isprintable() for line in text.splitlines())


def test_evaluation_table():
    result = FIGURES | {
        "masked_validation_tokens": 640,
        "data": "text",
        "checkpoint": "x/model",
        "validation_sequences": 1,
        "validation_tokens": 4096,
        "sequence_length": 4096,
        "sequence_length_assumed": False,
    }
    text = evaluation_table(result | {"unigram_perplexity": None})
    for part in ("20.09\n", "3.000000 nats", "640 masked tokens of text", "1 sequence, 4,096 tokens", "x/model"):
        assert part in text
    assert "sequence length        4096\n" in text
    several = evaluation_table(result | {"validation_sequences": 2000, "sequence_length_assumed": True})
    assert "2,000 sequences" in several and "4096 (assumed" in several
    assert "inf (unigram" in evaluation_table(result | {"validation_perplexity": None})


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (59.7, "1 min 00 s"), (3725, "1 h 02 min")])
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text
