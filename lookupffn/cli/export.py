"""lookupffn-export: write a trained model for OpenVINO or ONNX Runtime.

    lookupffn-export outputs/<run> --format openvino --precision int8

The folder can be served without torch:

    import numpy as np, openvino
    model = openvino.Core().compile_model("<folder>/model.xml", "CPU")
    ids = np.array([[0, 5, 6, 2]]); logits = model({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]

    import onnxruntime
    session = onnxruntime.InferenceSession("<folder>/model.onnx")
    logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from lookupffn.cli.launch import exit_with
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder, or a HuggingFace folder of ours")
    parser.add_argument("--format", choices=("openvino", "onnx"), required=True)
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32")
    parser.add_argument("--output", type=Path, help="<model>/<format>-<precision> if not given")
    parser.add_argument("--no-head", action="store_true", help="the last hidden state in place of logits")
    return parser.parse_args(arguments)


def export_run(args: argparse.Namespace) -> Path:
    """Export, with the tokenizer beside the file.

    Raises:
        UserError: no such model, or an engine that is not installed.
    """
    # imported here so that a mistyped command is answered without waiting for torch
    import torch

    from lookupffn.config.data import data_settings
    from lookupffn.data import prepare_data
    from lookupffn.inference.export import CALIBRATION_BATCH, CALIBRATION_SEQUENCES, calibration_batches, export
    from lookupffn.models.loading import load_model, load_tokenizer
    from lookupffn.runs.model_source import find_model
    from lookupffn.storage import cache_root

    source = find_model(args.model)
    model = load_model(source.folder)
    tokenizer = load_tokenizer(source.folder)
    length = min(128, model.config.max_position_embeddings - 2)
    try:
        if source.run_config is None:
            raise UserError("the folder belongs to no run")
        settings = data_settings(source.run_config["data"])
        data = prepare_data(settings, tokenizer, cache_root(None), splits=("validation",))
        calibration = calibration_batches(data.validation.tokens)
    except UserError as error:
        logger.warning("calibrated on random tokens, which costs accuracy in int8: %s", error)
        ids = torch.randint(5, model.config.vocab_size, (CALIBRATION_SEQUENCES, length))
        calibration = list(ids.split(CALIBRATION_BATCH))
    output = args.output or args.model / f"{args.format}-{args.precision}"
    relative_error = export(
        model,
        output,
        format=args.format,
        precision=args.precision,
        calibration=calibration,
        head=not args.no_head,
    )
    tokenizer.save_pretrained(output)
    logger.info("written: %s (relative error of its outputs %.2g)", output, relative_error)
    return output


def main(arguments: list[str] | None = None) -> None:
    """The command lookupffn-export."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    exit_with(lambda: export_run(parse(arguments)))


if __name__ == "__main__":
    main()
