import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lookupffn import LookupRobertaConfig, LookupRobertaForMaskedLM
from lookupffn.cli import export


@pytest.fixture
def folder(tmp_path):
    words = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefghijklmno"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), pad_token="<pad>", mask_token="<mask>",
        unk_token="<unk>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LookupRobertaForMaskedLM(
        LookupRobertaConfig(
            hidden_size=32, num_attention_heads=2, intermediate_size=48, num_hidden_layers=1, vocab_size=20,
            max_position_embeddings=30, type_vocab_size=1, ffn={"name": "lookup", "num_tables": 4},
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_a_folder_becomes_a_file_with_its_tokenizer(folder):
    pytest.importorskip("onnxscript", reason="writes ONNX")
    pytest.importorskip("onnxruntime", reason="checks what was written")
    written = export.export_run(export.parse([str(folder), "--format", "onnx"]))
    assert written == folder / "onnx-float32"
    assert {"model.onnx", "tokenizer.json"} <= {file.name for file in written.iterdir()}


def test_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        export.main([str(tmp_path / "nowhere"), "--format", "onnx"])
    assert exit_.value.code == 2
    assert "no folder" in capsys.readouterr().err
