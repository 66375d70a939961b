import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM, LookupRobertaForSequenceClassification

pytest.importorskip("starlette", reason="the example's server library")
pytest.importorskip("httpx", reason="starlette's test client")
from starlette.testclient import TestClient

SOURCE = Path(__file__).parents[2] / "examples" / "serve.py"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tokenizer():
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(20))])}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", mask_token="<mask>", unk_token="<unk>", bos_token="<s>"
    )


def model(cls):
    return cls(
        LookupRobertaConfig(
            hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=1, vocab_size=25,
            max_position_embeddings=40, type_vocab_size=1, ffn={"name": "lookup", "num_tables": 4}, num_labels=3,
        )
    ).optimize_for_inference("int8")  # fmt: skip


def test_masks_are_filled_in_batches_and_latency_is_told(serve, tokenizer):
    with TestClient(serve.application(model(LookupRobertaForMaskedLM), tokenizer)) as client:
        texts = [f"w{i % 20} <mask> " + "w3 " * (i % 5) + "<mask>" * (i % 2) for i in range(24)]
        with ThreadPoolExecutor(12) as pool:
            responses = list(pool.map(lambda text: client.post("/fill-mask", json={"text": text}), texts))
        for i, response in enumerate(responses):
            assert response.status_code == 200
            answer = response.json()
            assert len(answer["masks"]) == 1 + i % 2
            assert all(len(mask) == 5 and all(0 <= share <= 1 for share in mask.values()) for mask in answer["masks"])
            assert answer["ms"] > 0 and answer["batch"] >= 1
        told = client.get("/latency").json()
        assert told["requests"] == 24
        assert told["ms_50"] <= told["ms_99"]


def test_the_answer_to_a_text_does_not_hang_on_its_batch(serve, tokenizer):
    batcher = serve.Batcher(model(LookupRobertaForMaskedLM), tokenizer, 8)
    alone = batcher.answers(["w1 <mask> w2"])[0]["masks"][0]
    together = batcher.answers(["w5 w6 <mask> w7 w8 w9 w1", "w1 <mask> w2"])[1]["masks"][0]
    assert together == pytest.approx(alone, rel=1e-2)


def test_classes(serve, tokenizer):
    with TestClient(serve.application(model(LookupRobertaForSequenceClassification), tokenizer)) as client:
        answer = client.post("/classify", json={"text": "w1 w2"}).json()
    shares = [value for name, value in answer.items() if name not in ("ms", "batch")]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"text": 3}', b'{"text": "w1 w2"}', b'{"other": "w1"}'])
def test_bad_requests_are_answered_with_what_is_wrong(serve, tokenizer, body):
    with TestClient(serve.application(model(LookupRobertaForMaskedLM), tokenizer)) as client:
        response = client.post("/fill-mask", content=body)
    assert response.status_code == 400 and response.json()["error"]
