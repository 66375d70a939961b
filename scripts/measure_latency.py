"""Time the feed-forwards of finished runs on this machine's CPU, for scripts/compare_runs.py --latency.

    python scripts/measure_latency.py outputs/ --output latency.json
    python scripts/measure_latency.py outputs/ --output latency.json --tokens 4096 --threads 1 --repeat 15

Each feed-forward (name, options and sizes; learning rates and seeds do not matter) is timed at inference, all layers of
its model together, alternating with GEMM of the model's intermediate size in one process; figures are medians. How long
a feed-forward takes may depend on its weights and inputs, so both are those of the best run: the inputs are what its
LayerNorms give for the run's validation text. Without a model folder the weights are new, and without text the inputs
are normal random numbers; latency.json says which.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn import UserError
from lookupffn.cli.launch import run_script

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lookupffn.report.runs import Run


logger = logging.getLogger(__name__)


def distinct(runs: Sequence[Run]) -> list[Run]:
    """One run for each feed-forward, the one with the lowest loss."""
    from lookupffn.report.inference_times import identity

    best: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.loss, str(run.path))):
        best.setdefault(json.dumps(identity(run), sort_keys=True), run)
    return sorted(best.values(), key=lambda run: str(run.path))


def trained(run: Run, tokens: int, cache: str | None) -> tuple[list[nn.Module], list[Tensor] | None]:
    """A run's feed-forwards, and what they get to see of the run's validation text.

    Args:
        run: a run with its model folder.
        tokens: how many.
        cache: where prepared text is kept; None for where the run kept it.

    Returns:
        A module a layer, and [tokens, hidden size] a layer or None where there is no text.

    Raises:
        UserError: the model is damaged.
    """
    import numpy as np
    import torch

    from lookupffn.config.data import data_settings
    from lookupffn.data import prepare_data
    from lookupffn.evaluation.latency import module_inputs
    from lookupffn.models.loading import load_model, load_tokenizer
    from lookupffn.runs.model_source import find_model
    from lookupffn.storage import cache_root

    source = find_model(run.path)
    model = load_model(source.folder).eval()
    folder = cache_root(cache or source.run_config.get("cache_dir"))
    try:
        settings = data_settings(source.run_config["data"])
        data = prepare_data(settings, load_tokenizer(source.folder), folder, splits=("validation",))
    except UserError as error:
        logger.warning("%s: random inputs are used, because its text is not available (%s)", run.path, error)
        return model.feed_forwards(), None
    sequences = -(-tokens // data.validation.sequence_length)
    # a small split is read again from its start
    ids = torch.from_numpy(np.asarray(data.validation.tokens[np.arange(sequences) % len(data.validation)]).astype(int))
    inputs = module_inputs(model.feed_forwards(), lambda: model.base_model(input_ids=ids))
    return model.feed_forwards(), [x[:tokens].contiguous() for x in inputs]


def measure(run: Run, tokens: int, repeat: int, cache: str | None) -> dict[str, Any]:
    """Times a run's feed-forwards and GEMM beside them: an entry of latency.json.

    Args:
        run: whose.
        tokens: in a call.
        repeat: calls that a median is over.
        cache: where prepared text is kept; None for where the run kept it.

    Raises:
        UserError: the run's model is damaged or its feed-forward cannot be built.
    """
    import torch

    from lookupffn import build_ffn
    from lookupffn.evaluation.latency import layers_runner, medians
    from lookupffn.report.inference_times import identity
    from lookupffn.runs.names import MODEL

    what = identity(run)
    hidden, layers = what["hidden_size"], what["num_hidden_layers"]
    inputs, has_model = None, (run.path / MODEL).is_dir()
    if has_model:
        modules, inputs = trained(run, tokens, cache)
    else:
        options = what["ffn_options"]
        modules = [build_ffn(run.ffn, hidden_size=hidden, **options).eval() for _ in range(layers)]
    seen = inputs if inputs is not None else [torch.randn(tokens, hidden) for _ in range(layers)]
    size = what["intermediate_size"]
    gemm = [build_ffn("gemm", hidden_size=hidden, intermediate_size=size).eval() for _ in range(layers)]
    seconds = medians({"gemm": layers_runner(gemm, seen), "candidate": layers_runner(modules, seen)}, repeat)
    own = max(seconds["candidate"], 1e-9)  # no feed-forward may be faster than the clock
    return {
        **what,
        "us_per_token": own / tokens * 1e6,
        "gemm_us_per_token": seconds["gemm"] / tokens * 1e6,
        "ratio": seconds["gemm"] / own,
        "run": str(run.path),
        "weights": "trained" if has_model else "new",
        "inputs": "random" if inputs is None else "hidden states",
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold some at any depth")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON", help="file to write")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a call (default: 4096)")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given; 1: CPU time")
    parser.add_argument("--repeat", type=int, default=15, help="calls the medians are over (default: 15)")
    parser.add_argument("--cache-dir", help="prepared text (default: the run's own)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, save.

    Raises:
        UserError: no runs, a damaged run, or an output that cannot be written.
    """
    args = parse(arguments)

    import torch

    from lookupffn.report.runs import find_runs
    from lookupffn.runs.summary import surroundings
    from lookupffn.storage import write_atomically

    if min(args.repeat, args.tokens, 1 if args.threads is None else args.threads) < 1:
        raise UserError("--repeat, --tokens and --threads must be at least 1")
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise UserError(f"cannot write {args.output}: give a file in a folder that exists")
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = find_runs(args.folders).runs
    torch.manual_seed(0)
    out, entries = sys.stdout.write, []
    out(f"{torch.get_num_threads()} threads, {args.tokens:,} tokens a call, all layers\n")
    out(f"{'us/token':>9} {'GEMM':>9} {'ratio':>6} inputs         run\n")
    for run in distinct(runs):
        entries.append(entry := measure(run, args.tokens, args.repeat, args.cache_dir))
        out(f"{entry['us_per_token']:>9.3f} {entry['gemm_us_per_token']:>9.3f} {entry['ratio']:>6.2f} ")
        out(f"{entry['inputs']:<14} {run.path}\n")
        sys.stdout.flush()
    around = surroundings(torch.device("cpu"))
    head = {"tokens": args.tokens, "repeat": args.repeat, "torch": torch.__version__}
    content = {key: around[key] for key in ("device_name", "threads", "git_commit")} | head | {"variants": entries}
    try:
        write_atomically(args.output, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {args.output}: {error.strerror}") from None


if __name__ == "__main__":
    run_script(main)
