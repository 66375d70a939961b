"""Time one feed-forward by turns with the products of OpenVINO and ONNX Runtime, in one process.

    python scripts/benchmark_engines.py                                     # the project's bars
    python scripts/benchmark_engines.py --hidden-size 1024 2048 --tokens 2048 --candidates openvino-int8,one-probe-int8

The engines run the GEMM feed-forward (intermediate size 4 d), quantised by NNCF (static) and by ONNX Runtime (dynamic);
those that are not installed are named and left out. Weights and inputs are random, so the rows that a lookup reads are
spread over all of its tables. The tables of a large hidden size take memory: 1 GiB in float32 at 2,048.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import UserError
from lookupffn.cli.launch import run_script

if TYPE_CHECKING:
    import torch
    from torch import nn

Call = Callable[["torch.Tensor"], Any]
# the authors' shape, and the recipe of configs/ffn/lookup.yaml
LOOKUPS = {"one-probe": {"num_probes": 1, "block_size": 64}, "default": {}}
CANDIDATES = (
    "torch-float32", "torch-int8", "onnx-float32", "onnx-int8", "openvino-float32", "openvino-int8",
    "openvino-int8-bfloat16", *(f"{name}-{precision}" for name in LOOKUPS for precision in ("float32", "int8")),
)  # fmt: skip
# the threads of the engine before go on spinning for a while
PAUSE_S = 0.05
# (hidden size, tokens): candidate, baseline, times faster that is asked for
BARS = {
    (512, 8192): [("one-probe-int8", "openvino-int8", 2.0), ("default-int8", "openvino-int8", 1.3)],
    (512, 512): [("one-probe-int8", "openvino-int8", 2.0), ("default-int8", "openvino-int8", 1.3)],
    (512, 128): [("one-probe-float32", "torch-float32", 3.5)],
    (512, 1): [("one-probe-int8", "onnx-int8", 1.0)],
    (1024, 2048): [("one-probe-int8", "openvino-int8", 2.5)],
    (2048, 2048): [("one-probe-int8", "openvino-int8", 2.5)],
}


def openvino_layer(layer: nn.Module, d: int, threads: int, precision: str) -> Call:
    """A layer [M, d] to [M, d] in OpenVINO; in int8 by NNCF, with activations measured on random inputs.

    Raises:
        UserError: OpenVINO or NNCF is not installed.
    """
    import torch

    from lookupffn.inference.export import needed, openvino_request

    (openvino,) = needed("openvino")
    model = openvino.convert_model(layer, example_input=torch.randn(128, d))
    model.reshape([-1, d])
    if precision.startswith("int8"):
        (nncf,) = needed("nncf")
        data = nncf.Dataset(list(torch.randn(8, 128, d).numpy()))
        model = nncf.quantize(model, data, subset_size=8)
    request = openvino_request(model, threads, bfloat16=precision.endswith("bfloat16"))
    return lambda x: request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)[0]


def onnx_layer(layer: nn.Module, d: int, threads: int, precision: str, files: Path) -> Call:
    """A layer [M, d] to [M, d] in ONNX Runtime; in int8 dynamically.

    Raises:
        UserError: ONNX Runtime or what exports for it is not installed.
    """
    import torch

    from lookupffn.inference.export import needed, onnx_session

    _, _, quantization = needed("onnx", "onnxscript", "onnxruntime.quantization")
    path = files / f"{d}.onnx"
    dynamic = ({0: torch.export.Dim("tokens", min=1, max=1 << 24)},)
    torch.onnx.export(
        layer, (torch.randn(128, d),), path, input_names=["x"], dynamo=True, dynamic_shapes=dynamic,
        external_data=False, verbose=False,
    )  # fmt: skip
    if precision == "int8":
        quantization.quantize_dynamic(path, path, weight_type=quantization.QuantType.QInt8)
    session = onnx_session(path, threads)
    return lambda x: session.run(None, {"x": x.numpy()})[0]


def candidate(name: str, d: int, threads: int, files: Path) -> Call:
    """What a name stands for at hidden size d.

    Raises:
        UserError: its engine is not installed.
    """
    import torch

    from lookupffn import build_ffn
    from lookupffn.profiling.timing import dynamic_int8

    engine, _, precision = name.rpartition("-") if name.rpartition("-")[0] in LOOKUPS else name.partition("-")
    torch.manual_seed(0)
    if engine in LOOKUPS:
        ffn = build_ffn("lookup", hidden_size=d, **LOOKUPS[engine]).eval()
        return ffn.prepared("int8" if precision == "int8" else "float")
    gemm = build_ffn("gemm", hidden_size=d).eval()
    if engine == "openvino":
        return openvino_layer(gemm, d, threads, precision)
    if engine == "onnx":
        return onnx_layer(gemm, d, threads, precision, files)
    if precision == "int8":
        return dynamic_int8(gemm)
    return gemm


def by_turns(functions: dict[str, Call], d: int, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median and quartiles of microseconds a token; a turn is a pause, an untimed call, and calls with new inputs."""
    import numpy as np
    import torch

    # at few tokens many inputs, or their rows would wait in the cache
    inputs = [torch.randn(tokens, d) for _ in range(max(4, min(64, 4096 // tokens)))]
    inner = max(3, min(50, 2048 // tokens))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for x in inputs[:3]:
            function(x)
    for turn in range(rounds):
        for name, function in functions.items():
            time.sleep(PAUSE_S)
            function(inputs[turn % len(inputs)])
            for i in range(inner):
                x = inputs[(turn * inner + i + 1) % len(inputs)]
                start = time.perf_counter()
                function(x)
                times[name].append((time.perf_counter() - start) / tokens * 1e6)
    quartiles = {name: np.percentile(values, [25, 50, 75]) for name, values in times.items()}
    return {name: {"us_per_token": q[1], "us_25": q[0], "us_75": q[2]} for name, q in quartiles.items()}


def lines(d: int, tokens: int, timed: dict[str, dict[str, float]]) -> Iterator[str]:
    """What is printed of one shape."""
    yield f"d {d}, {tokens} tokens: microseconds a token (25% to 75%)"
    for name, t in timed.items():
        yield f"  {name:<24}{t['us_per_token']:>10.2f} ({t['us_25']:.2f} to {t['us_75']:.2f})"
    for ours, baseline, bar in BARS.get((d, tokens), ()):
        if ours in timed and baseline in timed:
            ratio = timed[baseline]["us_per_token"] / timed[ours]["us_per_token"]
            yield f"  {ours} is {ratio:.2f} times as fast as {baseline} (bar {bar})"


@contextmanager
def only_errors() -> Iterator[None]:
    """Inside the block nothing below an error is logged: exporters and quantisers tell of every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", nargs="+", type=int, help="measure these instead of the bars")
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192])
    parser.add_argument("--candidates", default=",".join(CANDIDATES), help="with commas")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", type=Path, metavar="PATH", help="save everything measured")
    return parser.parse_args(arguments)


def shapes(args: argparse.Namespace) -> dict[int, list[int]]:
    """Tokens by hidden size.

    Raises:
        UserError: numbers below 1, or an unknown candidate.
    """
    if min([args.rounds, *args.tokens, *(args.hidden_size or [])]) < 1:
        raise UserError("--rounds, --tokens and --hidden-size must be at least 1")
    for name in args.candidates.split(","):
        if name not in CANDIDATES:
            raise UserError(f"no candidate {name!r}; there are {', '.join(CANDIDATES)}")
    if args.hidden_size:
        return dict.fromkeys(args.hidden_size, args.tokens)
    found: dict[int, list[int]] = {}
    for d, tokens in BARS:
        found.setdefault(d, []).append(tokens)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, save."""
    args = parse(arguments)
    asked = shapes(args)

    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    threads, out = torch.get_num_threads(), sys.stdout.write
    result: dict[str, Any] = {"threads": threads, "torch": torch.__version__, "left_out": {}, "results": []}
    with tempfile.TemporaryDirectory() as files, only_errors():
        for d, tokens in asked.items():
            functions: dict[str, Call] = {}
            for name in args.candidates.split(","):
                try:
                    functions[name] = candidate(name, d, threads, Path(files))
                except UserError as error:
                    if name not in result["left_out"]:
                        out(f"left out: {name} ({error})\n")
                    result["left_out"][name] = str(error)
            for n in tokens if functions else ():
                with torch.inference_mode():
                    timed = by_turns(functions, d, n, args.rounds)
                result["results"].append({"hidden_size": d, "tokens": n, "times": timed})
                out("\n".join(lines(d, n, timed)) + "\n")
                sys.stdout.flush()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    run_script(main)
