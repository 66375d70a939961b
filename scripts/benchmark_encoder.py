"""Time whole encoders by turns in one process: this project's, and stock ones in the engines a user would pick.

    python scripts/benchmark_encoder.py --json encoder.json
    python scripts/benchmark_encoder.py --size base --shapes 8x128 --candidates eager,openvino-int8,lookup-int8
    python scripts/benchmark_encoder.py --runs outputs/a outputs/b          # validation loss of every int8 path
    python scripts/benchmark_encoder.py --requests 200 --processes 2   # latency of a stream, throughput
    python scripts/benchmark_encoder.py --shapes 16x512 --files exported/ --json encoder.json --merge   # in parts

Weights are random, which no speed here depends on but the lookup's (rows read are then spread over all of a table).
Engines that are not installed are named and left out. OpenVINO and ONNX Runtime get the GEMM model in standard
operations, quantised by NNCF (static) and by ONNX Runtime (dynamic).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import LookupRobertaConfig, LookupRobertaForSequenceClassification, LookupRobertaModel, UserError
from lookupffn.cli.launch import exit_with
from lookupffn.config.data import data_settings
from lookupffn.data import prepare_data
from lookupffn.inference.export import FILES, calibration_batches, export, load
from lookupffn.models.loading import load_model, load_tokenizer
from lookupffn.objectives.mlm import build_masker
from lookupffn.objectives.perplexity import evaluate_mlm
from lookupffn.profiling.system import peak_resident_bytes
from lookupffn.profiling.timing import dynamic_int8
from lookupffn.runs.model_source import find_model
from lookupffn.storage import cache_root

VOCABULARY = 50265
FFNS = {
    "gemm": {"name": "gemm"},
    "none": {"name": "none"},
    "lookup": {"name": "lookup"},  # the default recipe
    "paper": {"name": "lookup", "num_probes": 1, "block_size": 64},  # the authors' shape: one probe, blocks of 64
}
CANDIDATES = (
    "eager", "compiled", "eager-bfloat16", "torch-int8", "onnx-float32", "onnx-int8", "openvino-float32",
    "openvino-bfloat16", "openvino-int8", "openvino-int8-bfloat16",
    *(f"{ffn}-{precision}" for ffn in FFNS for precision in ("float32", "bfloat16", "int8")),
)  # fmt: skip
Encode = Callable[[torch.Tensor], Any]
PAUSE_S = 0.05  # the threads of the engine before go on spinning for a while


def build(size: str, ffn: str, head: bool) -> nn.Module:
    """A model of configs/model/<size>.yaml with random weights, the same for every candidate of a feed-forward."""
    values = yaml.safe_load((Path(__file__).resolve().parents[1] / "configs" / "model" / f"{size}.yaml").read_text())
    kept = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "layer_norm_eps")
    options = FFNS[ffn] | ({"num_tables": 128} if ffn == "paper" and values["hidden_size"] == 512 else {})
    config = LookupRobertaConfig(
        **{k: values[k] for k in kept},
        vocab_size=VOCABULARY,
        max_position_embeddings=514,
        type_vocab_size=1,
        ffn=options,
    )
    torch.manual_seed(0)
    if head:
        return LookupRobertaForSequenceClassification(config).eval()
    return LookupRobertaModel(config, add_pooling_layer=False).eval()


def called(model: nn.Module) -> Encode:
    """Without gradients."""

    def encode(ids: torch.Tensor) -> Any:
        with torch.inference_mode():
            return model(input_ids=ids)[0]

    return encode


def candidate(name: str, size: str, head: bool, threads: int, files: Path) -> Encode:
    """What a name stands for.

    Raises:
        UserError: its engine is not installed.
    """
    engine, _, precision = name.partition("-")
    if engine in FFNS:
        return called(build(size, engine, head).optimize_for_inference(precision))
    if engine in FILES:
        stored = "int8" if precision.startswith("int8") else "float32"
        folder = files / f"{size}-{engine}-{stored}{'-head' if head else ''}"
        if not folder.exists():
            batches = [torch.randint(5, VOCABULARY, (4, 128)) for _ in range(4)]
            export(build(size, "gemm", head), folder, format=engine, precision=stored, calibration=batches, head=head)
        run = load(folder / FILES[engine], threads, bfloat16=precision.endswith("bfloat16"))
        return lambda ids: run(ids.numpy(), np.ones(ids.shape, np.int64))
    model = build(size, "gemm", head)
    if name == "eager-bfloat16":
        return called(model.to(torch.bfloat16))
    if name == "torch-int8":
        return called(dynamic_int8(model))
    return called(torch.compile(model, dynamic=False) if name == "compiled" else model)


def by_turns(functions: dict[str, Encode], shape: tuple[int, int], rounds: int, budget: float) -> dict[str, Any]:
    """Medians and quartiles in milliseconds; new tokens at every call, one untimed call after each change of turn."""
    inputs = [torch.randint(5, VOCABULARY, shape) for _ in range(16)]
    times: dict[str, list[float]] = {name: [] for name in functions}
    for encode in functions.values():
        encode(inputs[0])
    inner = max(1, min(20, 2048 // (shape[0] * shape[1])))
    started = time.perf_counter()
    for turn in range(rounds):
        for name, encode in functions.items():
            time.sleep(PAUSE_S)
            encode(inputs[turn % 16])
            for i in range(inner):
                start = time.perf_counter()
                encode(inputs[(turn + i + 1) % 16])
                times[name].append((time.perf_counter() - start) * 1e3)
        if turn >= 2 and time.perf_counter() - started > budget:
            break
    return {name: summary(values) for name, values in times.items()}


def summary(milliseconds: list[float]) -> dict[str, float]:
    """Median, quartiles, and what a slow request sees."""
    q = np.percentile(milliseconds, [25, 50, 75, 95, 99])
    return {"ms": q[1], "ms_25": q[0], "ms_75": q[2], "ms_95": q[3], "ms_99": q[4], "least": min(milliseconds)}


def stream(encode: Encode, requests: int) -> dict[str, float]:
    """Requests one after another, of 8 to 128 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 129, (requests,), generator=generator).tolist()
    inputs = [torch.randint(5, VOCABULARY, (1, n)) for n in lengths]
    encode(inputs[0])
    times = []
    for ids in inputs:
        start = time.perf_counter()
        encode(ids)
        times.append((time.perf_counter() - start) * 1e3)
    return summary(times)


def _worker(arguments: tuple[str, str, bool, Path, float], start: Any, results: Any) -> None:
    name, size, head, files, seconds = arguments
    torch.set_num_threads(1)
    encode = candidate(name, size, head, 1, files)
    ids = torch.randint(5, VOCABULARY, (8, 128))
    encode(ids)
    start.wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        encode(ids)
        count += ids.numel()
    results.put((count / (time.perf_counter() - began), peak_resident_bytes() / (1 << 20)))


def throughput(name: str, args: argparse.Namespace, files: Path) -> dict[str, float]:
    """Tokens a second of several processes with a thread each, at 8x128, and the largest one's memory."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(args.processes), context.Queue()
    work = (name, args.size, args.head, files, 5.0)
    processes = [context.Process(target=_worker, args=(work, start, results)) for _ in range(args.processes)]
    for process in processes:
        process.start()
    got = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return {"tokens_per_s": sum(rate for rate, _ in got), "peak_mib": max(peak for _, peak in got)}


class _Logits(nn.Module):
    """An exported file where a model is expected."""

    def __init__(self, run: Callable[..., np.ndarray], model: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.config = model.config
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, masked_positions: torch.Tensor) -> Any:
        ids = input_ids.long()
        logits = torch.from_numpy(self.run(ids.numpy(), np.ones(ids.shape, np.int64)))
        picked = logits.gather(1, masked_positions[..., None].expand(-1, -1, logits.shape[-1]))
        return argparse.Namespace(logits=picked)


def losses(path: Path, max_tokens: int, files: Path) -> dict[str, float]:
    """Validation loss of a trained model in float32, and by every int8 path."""
    source = find_model(path)
    if source.run_config is None:
        raise UserError(f"{path} belongs to no run, so there is no text to score it on")
    settings, tokenizer = data_settings(source.run_config["data"]), load_tokenizer(source.folder)
    data = prepare_data(settings, tokenizer, cache_root(None), splits=("validation",))
    masker = build_masker(data, settings.mask_rate)

    def score(model: nn.Module) -> float:
        return evaluate_mlm(
            model, data.validation, masker, data_fingerprint=data.data_fingerprint, batch_size=16,
            max_tokens=max_tokens, progress=False,
        ).loss  # fmt: skip

    plain = load_model(source.folder).eval()
    results = {"float32": score(plain)}
    for precision in ("bfloat16", "int8"):
        results[f"ours-{precision}"] = score(load_model(source.folder).optimize_for_inference(precision))
    calibration = calibration_batches(data.validation.tokens)
    for engine in FILES:
        try:
            folder = files / f"{path.name}-{engine}"
            export(plain, folder, format=engine, precision="int8", calibration=calibration)
            results[f"{engine}-int8"] = score(_Logits(load(folder / FILES[engine]), plain))
        except UserError as error:
            logging.getLogger(__name__).warning("%s-int8 is left out: %s", engine, error)
    return results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="a file of configs/model")
    parser.add_argument("--shapes", default="16x512,8x128,1x128,1x16", help="sequences x tokens, with commas")
    parser.add_argument("--candidates", default=",".join(CANDIDATES), help="with commas; eager is always timed")
    parser.add_argument("--head", action="store_true", help="with a classification head")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=60, help="seconds a shape, at least three rounds")
    parser.add_argument("--requests", type=int, default=0, help="also a stream of so many single sequences")
    parser.add_argument("--processes", type=int, default=0, help="also so many processes of one thread each")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="score these trained models instead")
    parser.add_argument("--max-tokens", type=int, default=131072, help="of validation text for --runs")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="keep the engines' models here, or find them")
    parser.add_argument("--json", type=Path, metavar="PATH", help="save everything measured")
    parser.add_argument("--merge", action="store_true", help="add to what --json holds of the same size and threads")
    return parser.parse_args(arguments)


def measure(args: argparse.Namespace, files: Path) -> dict[str, Any]:
    """Everything but --runs."""
    out, threads = sys.stdout.write, torch.get_num_threads()
    functions: dict[str, Encode] = {}
    left_out = {}
    for name in dict.fromkeys(["eager", *args.candidates.split(",")]):
        if name not in CANDIDATES:
            raise UserError(f"no candidate {name!r}; there are {', '.join(CANDIDATES)}")
        try:
            functions[name] = candidate(name, args.size, args.head, threads, files)
        except UserError as error:
            left_out[name] = str(error)
            out(f"left out: {name} ({error})\n")
    result: dict[str, Any] = {
        "size": args.size,
        "head": args.head,
        "threads": threads,
        "left_out": left_out,
        "shapes": {},
    }
    for text in args.shapes.split(","):
        sequences, _, tokens = text.partition("x")
        if not (sequences.isdigit() and tokens.isdigit() and int(sequences) and int(tokens)):
            raise UserError(f"--shapes takes sequences x tokens such as 8x128, not {text!r}")
        timed = by_turns(functions, (int(sequences), int(tokens)), args.rounds, args.budget)
        result["shapes"][text] = timed
        out(f"{args.size} {text}, {threads} threads: ms (25% to 75%), times eager\n")
        for name, t in timed.items():
            times = timed["eager"]["ms"] / t["ms"]
            out(f"  {name:<24}{t['ms']:>10.3f} ({t['ms_25']:.3f} to {t['ms_75']:.3f}) {times:>6.2f}\n")
    for name, encode in functions.items() if args.requests else ():
        result.setdefault("stream", {})[name] = t = stream(encode, args.requests)
        out(f"  stream {name:<24} median {t['ms']:.2f} ms, 95% {t['ms_95']:.2f}, 99% {t['ms_99']:.2f}\n")
    for name in functions if args.processes else ():
        result.setdefault("processes", {})[name] = t = throughput(name, args, files)
        out(f"  {args.processes} processes {name:<24} {t['tokens_per_s']:.0f} tokens/s, {t['peak_mib']:.0f} MiB each\n")
    return result


def merged_into(args: argparse.Namespace) -> dict[str, Any]:
    """What --merge adds to; empty without it, or where the file is not there yet.

    Raises:
        UserError: the file is of other things, or --merge has nothing to work on.
    """
    if not args.merge:
        return {}
    if args.json is None or args.runs:
        raise UserError("--merge adds to the file of --json, and not with --runs")
    if not args.json.exists():
        return {}
    earlier = json.loads(args.json.read_text())
    asked = {"size": args.size, "head": args.head, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for key, value in asked.items():
        if earlier.get(key) != value:
            raise UserError(f"{args.json} is of {key} {earlier.get(key)}, not {value}: give another file")
    return earlier


def merged(earlier: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Both, what was measured last where both have it; candidates of a shape stay those of one process."""
    parts = ("left_out", "shapes", "stream", "processes")
    return result | {part: earlier.get(part, {}) | result.get(part, {}) for part in parts if part in earlier | result}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, save."""
    args = parse(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    earlier = merged_into(args)
    with tempfile.TemporaryDirectory() as folder:
        if args.runs:
            result: dict[str, Any] = {"runs": {}}
            for path in args.runs:
                result["runs"][str(path)] = scored = losses(path, args.max_tokens, Path(folder))
                for name, loss in scored.items():
                    change = np.exp(loss - scored["float32"]) - 1
                    sys.stdout.write(f"{path.name:<24} {name:<16} {loss:.5f} nats, perplexity {change:+.3%}\n")
        else:
            result = merged(earlier, measure(args, args.files or Path(folder)))
    result["torch"] = torch.__version__
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    exit_with(main)
