"""Time feed-forwards on this machine's CPU against torch's GEMM feed-forward.

    python scripts/benchmark_ffn.py                                   # the project's bars
    python scripts/benchmark_ffn.py --hidden-size 256 512 1024 --tokens 1 128 8192 --set num_probes=1 --plot plots/

Baseline and candidate take turns in one process; figures are medians. GFLOP/s are by lookupffn.cost; GB/s count input,
output and what is read of the parameters: a table row each time a token reads it, anything else once a call.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import UserError
from lookupffn.cli.launch import run_script

if TYPE_CHECKING:
    from torch import nn

    from lookupffn import LookupRobertaConfig

# precisions, and torch's type of the inputs
DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "float32"}
T128 = {"num_tables": 128, "table_size": 256, "block_size": 64, "num_probes": 1}
T64 = T128 | {"num_tables": 64, "num_probes": 2}


@dataclass
class Case:
    """What is measured: one feed-forward, shape, type and mode; ``bar`` is the ratio to GEMM that is asked for."""

    ffn: str
    options: dict[str, Any]
    hidden_size: int
    tokens: int
    dtype: str = "float32"
    mode: str = "inference"
    bar: float | None = None


def prepared(module: nn.Module, case: Case) -> nn.Module:
    """The module in the case's type and mode."""
    import torch

    from lookupffn.profiling.timing import dynamic_int8

    if case.mode == "training":
        return module.train()
    module = module.eval()
    if case.dtype == "int8":
        if hasattr(module, "quantize_tables"):
            module.quantize_tables()
            return module
        return dynamic_int8(module)
    return module.to(getattr(torch, DTYPES[case.dtype]))


def measure(case: Case, peaks: dict[str, float], repeat: int) -> dict[str, Any]:
    """Time one case and GEMM beside it."""
    import torch

    from lookupffn import build_ffn
    from lookupffn.evaluation.latency import medians, runner
    from lookupffn.profiling.timing import bytes_moved

    candidate = build_ffn(case.ffn, hidden_size=case.hidden_size, **case.options)
    cost = candidate.cost()
    moved = bytes_moved(candidate, case.tokens, case.dtype)
    modules = {"gemm": build_ffn("gemm", hidden_size=case.hidden_size), "candidate": candidate}
    # few tokens: new ones at every call, or their rows would wait in the cache
    calls = max(1, min(64, 512 // case.tokens))
    dtype = getattr(torch, DTYPES[case.dtype])
    inputs = [torch.randn(case.tokens, case.hidden_size).to(dtype) for _ in range(calls)]
    if case.mode == "training":
        inputs = [x.requires_grad_() for x in inputs]
    functions = {name: runner(prepared(module, case), inputs, case.mode) for name, module in modules.items()}
    seconds = {name: value / calls for name, value in medians(functions, repeat).items()}
    flops = cost.flops * case.tokens * (3 if case.mode == "training" else 1)
    gflops = flops / seconds["candidate"] / 1e9
    gbs = moved * case.tokens / seconds["candidate"] / 1e9
    return asdict(case) | {
        "us_per_token": seconds["candidate"] / case.tokens * 1e6,
        "gemm_us_per_token": seconds["gemm"] / case.tokens * 1e6,
        "ratio": seconds["gemm"] / seconds["candidate"],
        "gflops": gflops,
        "share_of_peak_gflops": gflops / peaks["gflops"],
        "gbs": gbs,
        "times_memory_read": gbs / peaks["read_gbs"],
    }


def _model_config(ffn: dict[str, Any], model: str) -> LookupRobertaConfig:
    from lookupffn import LookupRobertaConfig

    path = Path(__file__).resolve().parents[1] / "configs" / "model" / f"{model}.yaml"
    values = yaml.safe_load(path.read_text())
    for key in ("name", "sequence_length"):
        values.pop(key)
    positions = values.pop("max_positions")
    return LookupRobertaConfig(**values, ffn=ffn, vocab_size=8192, max_position_embeddings=positions + 2)


def measure_encoder(repeat: int) -> dict[str, Any]:
    """The whole encoder `small` at sequences of 512, inference, lookup (T 128) against GEMM."""
    import torch

    from lookupffn import LookupRobertaModel
    from lookupffn.evaluation.latency import medians, runner

    ids = torch.randint(5, 8192, (4, 512))
    functions = {}
    for name, ffn in (("gemm", {"name": "gemm"}), ("candidate", {"name": "lookup", **T128})):
        model = LookupRobertaModel(_model_config(ffn, "small")).eval()
        functions[name] = runner(model, [ids], "inference")
    seconds = medians(functions, repeat)
    return _whole("encoder small, sequences of 512", ids.numel(), seconds, 1.45)


def measure_step(repeat: int, model_name: str = "mini", sequences: int = 64) -> dict[str, Any]:
    """What one step of train.py does at `mini`: forward, backward, clipping, fused AdamW."""
    import torch

    from lookupffn import LookupRobertaForMaskedLM
    from lookupffn.evaluation.latency import medians

    functions, optimizers = {}, {}
    for name, ffn in (("gemm", {"name": "gemm"}), ("candidate", {"name": "lookup"})):
        config = _model_config(ffn, model_name)
        model = LookupRobertaForMaskedLM(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        length = 128 if model_name == "mini" else 512
        ids = torch.randint(5, 8192, (sequences, length))
        positions = torch.arange(0, length, 7).expand(sequences, -1)
        labels = ids.gather(1, positions)

        def step(model: nn.Module = model, optimizer: Any = optimizer, batch: tuple = (ids, positions, labels)) -> None:
            model(input_ids=batch[0], masked_positions=batch[1], labels=batch[2]).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        functions[name], optimizers[name] = step, (model, optimizer)
    seconds = medians(functions, max(3, repeat // 3))
    updates = {}
    for name, (model, optimizer) in optimizers.items():
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        updates[name] = optimizer.step
    shares = medians(updates, max(3, repeat // 3))
    result = _whole(f"one training step, {model_name}", sequences * length, seconds, 1.0)
    return result | {"optimizer_share": shares["candidate"] / seconds["candidate"]}


def _whole(what: str, tokens: int, seconds: dict[str, float], bar: float) -> dict[str, Any]:
    return {
        "what": what,
        "tokens": tokens,
        "us_per_token": seconds["candidate"] / tokens * 1e6,
        "gemm_us_per_token": seconds["gemm"] / tokens * 1e6,
        "ratio": seconds["gemm"] / seconds["candidate"],
        "bar": bar,
    }


def bars() -> list[Case]:
    """The feed-forward rows of the project's table."""
    return [
        Case("lookup", T128, 512, 8192, bar=4.0),
        Case("lookup", T128, 512, 128, bar=3.0),
        Case("lookup", T128, 512, 1, bar=4.0),
        Case("lookup", T64, 512, 8192, bar=4.0),
        Case("lookup", T128, 512, 8192, "bfloat16", bar=3.0),
        Case("lookup", T128, 512, 8192, "int8", bar=2.5),
        Case("lookup", T128, 512, 4096, mode="training", bar=2.5),
        Case("lookup", T64, 512, 4096, mode="training", bar=2.5),
        Case("lookup", T128 | {"num_tables": 256}, 1024, 8192, bar=4.0),
    ]


def line(result: dict[str, Any]) -> str:
    """One row of the printed table."""
    if "what" in result:
        name = result["what"]
    else:
        options = " ".join(f"{k}={v}" for k, v in result["options"].items())
        name = f"{result['ffn']} d={result['hidden_size']} {options} {result['dtype']} {result['mode']}"
    text = f"{name:<92} {result['tokens']:>6} {result['us_per_token']:>9.2f} {result['gemm_us_per_token']:>9.2f}"
    text += f" {result['ratio']:>6.2f} " + (f"{result['bar']:>5.2f}" if result.get("bar") else "     ")
    if "gflops" in result:
        text += f" {result['gflops']:>7.1f} ({result['share_of_peak_gflops']:>4.0%}) {result['gbs']:>7.1f}"
        text += f" ({result['times_memory_read']:.1f}x)"
    if "optimizer_share" in result:
        text += f" AdamW {result['optimizer_share']:.0%} of the step"
    return text


def plot(results: list[dict[str, Any]], folder: Path) -> None:
    """ratio-hidden_size.png and ratio-tokens.png: the ratio to GEMM against each."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    measured = [r for r in results if "ffn" in r]
    for axis, other in (("hidden_size", "tokens"), ("tokens", "hidden_size")):
        figure, axes = pyplot.subplots()
        kind = lambda r, other=other: (r["ffn"], r[other], r["dtype"], r["mode"])  # noqa: E731
        for key, group in itertools.groupby(sorted(measured, key=kind), key=kind):
            points = sorted((r[axis], r["ratio"]) for r in group)
            axes.plot(*zip(*points, strict=True), marker="o", label=f"{key[0]}, {other} {key[1]}, {key[2]}, {key[3]}")
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xscale="log", xlabel=axis.replace("_", " "), ylabel="times faster than GEMM", ylim=(0, None))
        axes.legend(fontsize="small")
        figure.savefig(folder / f"ratio-{axis}.png", dpi=150)
        pyplot.close(figure)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ffn", nargs="+", metavar="NAME", default=["lookup"], help="as in configs/ffn")
    parser.add_argument("--hidden-size", nargs="+", type=int, help="measure these instead of the bars")
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--mode", nargs="+", choices=["inference", "training"], default=["inference"])
    parser.add_argument("--set", nargs="+", default=[], metavar="OPTION=VALUE", help="options of the feed-forward")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given; 1: CPU time")
    parser.add_argument("--repeat", type=int, default=15, help="calls the medians are over")
    parser.add_argument("--json", type=Path, metavar="PATH", help="save everything measured")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the ratio to GEMM (PNG)")
    return parser.parse_args(arguments)


def cases(args: argparse.Namespace) -> list[Case]:
    """What the command line asks for.

    Raises:
        UserError: an option that is not OPTION=VALUE, or sizes that cannot be.
    """
    if args.repeat < 1 or min(args.tokens) < 1:
        raise UserError("--repeat and --tokens must be at least 1")
    if args.hidden_size is None:
        return bars()
    options = {}
    for item in args.set:
        key, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"--set takes OPTION=VALUE, not {item!r}")
        options[key] = yaml.safe_load(value)
    grid = itertools.product(args.ffn, args.hidden_size, args.tokens, args.dtype, args.mode)
    return [Case(ffn, copy.deepcopy(options), d, n, dtype, mode) for ffn, d, n, dtype, mode in grid]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, save, draw."""
    args = parse(arguments)
    asked = cases(args)

    import torch

    from lookupffn.profiling.timing import machine_peaks

    if args.threads:
        torch.set_num_threads(args.threads)
    peaks = machine_peaks(args.repeat)
    out = sys.stdout.write
    out(f"{torch.get_num_threads()} threads, torch {torch.__version__}; measured peaks: {peaks['gflops']:.0f} GFLOP/s,")
    out(f" reading {peaks['read_gbs']:.1f} GB/s, copying {peaks['copy_gbs']:.1f} GB/s\n")
    out(f"{'':<92} {'tokens':>6} {'us/token':>9} {'GEMM':>9} {'ratio':>6} {'bar':>5} GFLOP/s (of peak) GB/s\n")
    results = []
    for case in asked:
        results.append(measure(case, peaks, args.repeat))
        out(line(results[-1]) + "\n")
    if args.hidden_size is None:
        for whole in (measure_encoder, measure_step):
            results.append(whole(args.repeat))
            out(line(results[-1]) + "\n")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"threads": torch.get_num_threads(), "peaks": peaks, "results": results}, indent=1)
        )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    run_script(main)
