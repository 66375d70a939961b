"""Writing a model for OpenVINO or ONNX Runtime, in float32 or int8, checked against the model it was made from.

Only operations that the engines bring are used: see ``standard``. Their packages are not requirements of this project.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookupffn.errors import UserError
from lookupffn.inference.standard import StandardLookup, StandardModel
from lookupffn.models.modeling import LookupRobertaPreTrainedModel

logger = logging.getLogger(__name__)

FORMATS = ("openvino", "onnx")
PRECISIONS = ("float32", "int8")
FILES = {"openvino": "model.xml", "onnx": "model.onnx"}
# of the norm of the outputs; int8 beyond it is not a rounding
TOLERANCE = {"float32": 1e-3, "int8": 0.5}
CALIBRATION_SEQUENCES, CALIBRATION_BATCH = 32, 8

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def needed(*names: str) -> list[Any]:
    """Import optional packages.

    Raises:
        UserError: one is not installed.
    """
    modules = []
    for name in names:
        try:
            modules.append(__import__(name, fromlist=["_"]))
        except ImportError as error:
            package = name.split(".")[0]
            raise UserError(f"this needs {package}: pip install {package} ({error})") from None
    return modules


def export(
    model: LookupRobertaPreTrainedModel,
    folder: Path,
    *,
    format: str,
    precision: str,
    calibration: Sequence[Tensor],
    head: bool = True,
) -> float:
    """Write ``model`` to ``folder``, and check what was written.

    Args:
        model: not optimised; evaluated in float32.
        folder: is created; holds model.xml and model.bin, or model.onnx.
        format: one of FORMATS.
        precision: one of PRECISIONS. int8: products by NNCF (static, activations measured on ``calibration``), or by
            ONNX Runtime (dynamic). The hash and the tables stay in float32: a rounded hash reads other rows.
        calibration: batches of token ids [B, L]; the first is what the file is checked on.
        head: logits; without, the last hidden state.

    Returns:
        Relative error of the outputs.

    Raises:
        UserError: the engine is not installed, or what it computes is not what the model does.
    """
    standard = StandardModel(model.eval().float(), head=head).eval()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write = _write_openvino if format == "openvino" else _write_onnx
        write(standard, partial, precision, calibration)
        ids = calibration[0].long()
        mask = torch.ones_like(ids)
        mask[:, ids.shape[1] * 3 // 4 :] = 0
        mask[0] = 1
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask) if head else model.base_model(ids, attention_mask=mask)
        expected = expected[0].float().numpy()
        out = load(partial / FILES[format])(ids.numpy(), mask.numpy())
        if out.shape[:2] == mask.shape:  # what padding gives is nobody's business
            kept = mask.numpy().astype(bool)
            out, expected = out[kept], expected[kept]
        error = float(np.linalg.norm(out - expected) / max(np.linalg.norm(expected), 1e-30))
        if not error <= TOLERANCE[precision]:
            raise UserError(
                f"{format} computes something else than the model (relative error {error:.3g}): not written"
            )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return error


def calibration_batches(tokens: np.ndarray) -> list[Tensor]:
    """Token ids [8, L] to calibrate on: 32 sequences spread evenly over tokens [N, L]."""
    chosen = np.linspace(0, len(tokens) - 1, CALIBRATION_SEQUENCES).astype(int)
    return list(torch.from_numpy(np.asarray(tokens[chosen]).astype(np.int64)).split(CALIBRATION_BATCH))


def _example(calibration: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    ids = calibration[0].long()
    # sizes of 1 would be taken for constants
    ids = ids.repeat(2 if ids.shape[0] == 1 else 1, 2 if ids.shape[1] == 1 else 1)
    return ids, torch.ones_like(ids)


def _write_openvino(model: StandardModel, folder: Path, precision: str, calibration: Sequence[Tensor]) -> None:
    (openvino,) = needed("openvino")
    ids, mask = _example(calibration)
    converted = openvino.convert_model(model, example_input={"input_ids": ids, "attention_mask": mask})
    converted.reshape({0: [-1, -1], 1: [-1, -1]})
    if precision == "int8":
        (nncf,) = needed("nncf")
        hashes = {tuple(module.hash.weight.shape) for module in model.modules() if isinstance(module, StandardLookup)}
        excluded = [
            op.get_friendly_name()
            for op in converted.get_ops()
            if op.get_type_name() == "MatMul" and tuple(op.input_value(1).get_partial_shape().to_shape() if
                op.input_value(1).get_partial_shape().is_static else ()) in hashes
        ]  # fmt: skip
        data = [{"input_ids": b.long().numpy(), "attention_mask": np.ones(b.shape, np.int64)} for b in calibration]
        converted = nncf.quantize(
            converted,
            nncf.Dataset(data),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(data),
            ignored_scope=nncf.IgnoredScope(names=excluded, types=["Gather", "Add", "Multiply", "MVN"], validate=False),
        )
    openvino.save_model(converted, folder / FILES["openvino"], compress_to_fp16=False)


def _write_onnx(model: StandardModel, folder: Path, precision: str, calibration: Sequence[Tensor]) -> None:
    onnx, _ = needed("onnx", "onnxscript")
    ids, mask = _example(calibration)
    path = folder / FILES["onnx"]
    shapes = {0: torch.export.Dim("sequences", min=1, max=1 << 20), 1: torch.export.Dim("tokens", min=2, max=1 << 20)}
    with torch.no_grad():
        torch.onnx.export(
            model,
            (ids, mask),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["output"],
            dynamic_shapes={"input_ids": shapes, "attention_mask": shapes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if precision == "int8":
        (quantization,) = needed("onnxruntime.quantization")
        hashes = {name.removesuffix(".weight") for name, _ in model.named_parameters() if ".hash." in name}
        graph = onnx.load(path).graph
        excluded = [n.name for n in graph.node if any(h in (i or "") for i in n.input for h in hashes)]
        quantization.quantize_dynamic(
            path,
            path,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=excluded,
            extra_options={"MatMulConstBOnly": True},
        )


def load(path: Path, threads: int | None = None, *, bfloat16: bool = False) -> Runner:
    """A function of input_ids and attention_mask (int64 [B, L]) that runs an exported file; torch has no part in it."""
    if path.suffix == ".xml":
        request = openvino_request(path, threads, bfloat16=bfloat16)
        return lambda ids, mask: request.infer({0: ids, 1: mask})[0]
    session = onnx_session(path, threads)
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def openvino_request(model: Any, threads: int | None = None, *, bfloat16: bool = False) -> Any:
    """An inference request of OpenVINO for a model or its file, for the least latency of one call."""
    (openvino,) = needed("openvino")
    precision = "bf16" if bfloat16 else "f32"
    config = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False, "INFERENCE_PRECISION_HINT": precision}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    return openvino.Core().compile_model(model, "CPU", config).create_infer_request()


def onnx_session(path: Path, threads: int | None = None) -> Any:
    """A session of ONNX Runtime on the CPU."""
    (onnxruntime,) = needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
