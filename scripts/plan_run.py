"""What training will need: memory by its terms, and time, before there is a machine to try it on.

    python scripts/plan_run.py experiment=race_small                        # every member, on a GPU of 80 GB
    python scripts/plan_run.py experiment=race_small ffn=lookup --rehearse  # a step on this CPU beside its plan

Nothing of the corpus is read. Terms in GB (1e9 bytes): float32 weights and Adam's moments; then the larger of the
gradients and of what a forward keeps (half-precision copies of weights, activations of attention, feed-forwards, head,
and the rest) with the logits. A GPU also needs about 1 GB for its context and libraries.

Time is a projection, never measured: matrix products at --share of --tflops, three passes over the table rows that are
read at half of --bandwidth, and --overhead milliseconds a step for launching kernels. Defaults: H100.

``--rehearse`` needs the memory that it plans. Exit status: 1 where the plan is off by more than 10% of what torch's
allocator gave out.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupffn.cli.command_line import compose, composing, read_command_line, sweep_members
from lookupffn.cli.launch import run_script
from lookupffn.errors import UserError
from lookupffn.profiling.system import peak_resident_bytes

GB = 1e9
TOLERANCE = 0.1
COLUMNS = ("weights", "Adam", "gradients", "copies", "attention", "feed-forwards", "head", "rest", "logits", "peak")

logger = logging.getLogger("plan_run")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="the run or the race, as for train.py")
    parser.add_argument("--memory", type=float, default=80.0, help="GB of the GPU (default: 80)")
    parser.add_argument("--tflops", type=float, default=989.0, help="its dense bfloat16 peak (default: 989)")
    parser.add_argument("--share", type=float, default=0.3, help="of that peak which is reached (default: 0.3)")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="of its memory, TB/s (default: 3.35)")
    parser.add_argument("--overhead", type=float, default=10.0, help="ms a step (default: 10)")
    parser.add_argument("--vocabulary", type=int, help="entries (default: tokenizer.vocab_size)")
    parser.add_argument("--rehearse", action="store_true", help="train a step here and compare")
    arguments = parser.parse_intermixed_args()
    run_script(lambda: sys.exit(0 if plan(arguments) else 1))


def plan(arguments: argparse.Namespace) -> bool:
    """Prints the plan of every member; whether those that were rehearsed came out as planned."""
    from lookupffn.config.data import masked_count
    from lookupffn.training.step import micro_batches_each

    good = True
    names = _members(arguments.overrides)
    width = max(len(name) for name in names)
    sys.stdout.write(f"{'':{width}}  {'  '.join(f'{name:>9}' for name in COLUMNS)}  GB\n")
    for name, lines in names.items():
        with composing():
            objective, model = _build(compose("train", lines), arguments.vocabulary)
        config = objective.config
        settings, L = config.training, config.data.sequence_length
        sizes = {
            "sequences": settings.batch_size // micro_batches_each(settings, 1),
            "length": L,
            "masked": masked_count(config.data.mask_rate, L),
            "precision": settings.precision,
        }
        here = arguments.rehearse
        memory = _memory(model, sizes, on_this_cpu=here)
        sys.stdout.write(f"{name:{width}}  {'  '.join(f'{size / GB:9.2f}' for size in memory.values())}\n")
        if here:
            good &= _rehearse(model, config, sizes, memory)
        else:
            fits = memory["peak"] + 1e9 < arguments.memory * GB
            times = _projected(model, objective, arguments)
            sys.stdout.write(f"{'':{width}}  {'fits' if fits else 'DOES NOT FIT'}; {times}\n")
    return good


def _members(overrides: list[str]) -> dict[str, list[str]]:
    """The runs by what is typed for them, without those that differ in nothing but the seed."""
    command = read_command_line("train", ["-m", *overrides])
    swept = {o.get_key_element() for o in command.overrides if o.is_sweep_override()} - {"seed"}
    found: dict[str, list[str]] = {}
    for member in sweep_members(command.overrides):
        own = [o.input_line for o in member if o.get_key_element() in swept]
        found.setdefault(" ".join(own) or "run", [o.input_line for o in member])
    return found


def _build(cfg: Any, vocabulary: int | None) -> tuple[Any, Any]:
    """What a run trains for, and its model."""
    from lookupffn.config.run import resolve
    from lookupffn.models import LookupRobertaForMaskedLM
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training.run import build_objective

    objective = build_objective(resolve(cfg, MaskedLanguageModelling.sections), MaskedLanguageModelling)
    vocabulary = vocabulary or getattr(objective.config.tokenizer, "vocab_size", None)
    if vocabulary is None:
        raise UserError("tokenizer=pretrained: say how many entries it has with --vocabulary")
    objective.model_config.vocab_size = vocabulary
    return objective, LookupRobertaForMaskedLM(objective.model_config)


def _memory(model: Any, sizes: dict[str, Any], *, on_this_cpu: bool) -> dict[str, int]:
    """Bytes by column; as the operations of a GPU keep them, or those of this CPU."""
    from lookupffn.ops.backend import forced_backend
    from lookupffn.profiling.training_memory import OTHER, plan_memory
    from lookupffn.training.step import plain_attention

    plain = plain_attention(sizes["precision"], "cpu" if on_this_cpu else "cuda")
    # a GPU has no kernels
    with nullcontext() if on_this_cpu else forced_backend("reference"):
        found = plan_memory(model, **sizes, attention="eager" if plain else "sdpa")
    kept = [found.activations.get(part, 0) for part in ("attention", "feed-forwards", "head", OTHER)]
    values = (found.weights, found.optimizer, found.gradients, found.copies, *kept, found.logits, found.peak)
    return dict(zip(COLUMNS, values, strict=True))


def _projected(model: Any, objective: Any, arguments: argparse.Namespace) -> str:
    """Time on a GPU, in words."""
    from lookupffn.cost import BYTES_PER_PARAMETER, TRAINING_MULTIPLE
    from lookupffn.training.budget import choose_budget

    config = objective.config

    costs = model.cost(config.data.sequence_length, config.data.mask_rate)
    tokens = config.training.batch_size * config.data.sequence_length
    gathered = sum(flops for part, flops in costs.flops_by_part.items() if part.endswith("gather"))
    products = TRAINING_MULTIPLE * tokens * (costs.flops - gathered) / (arguments.share * arguments.tflops * 1e12)
    # a multiply and an add for each number of a row
    read = TRAINING_MULTIPLE * tokens * gathered / 2 * BYTES_PER_PARAMETER / (arguments.bandwidth * 1e12 / 2)
    step = products + read + arguments.overhead / 1e3
    text = f"step {1e3 * step:.1f} ms (products {1e3 * products:.1f}, rows {1e3 * read:.1f})"
    if config.training.max_epochs is not None:  # of a corpus that was not read
        return text
    steps = choose_budget(config.training, objective).steps(tokens, TRAINING_MULTIPLE * costs.flops, math.inf)
    return text if steps is None else f"{text}, {steps:,} steps in {steps * step / 3600:.2f} hours"


def _rehearse(model: Any, config: Any, sizes: dict[str, Any], memory: dict[str, int]) -> bool:
    """Trains steps on random tokens at the full size; whether torch allocates what is planned."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from lookupffn.profiling.training_memory import highest_allocated
    from lookupffn.training.optimizer import build_optimizer

    B, L, P = sizes["sequences"], sizes["length"], sizes["masked"]
    ids = torch.randint(model.config.vocab_size, (B, L))
    optimizer = build_optimizer(model, config.optimizer, torch.device("cpu"))

    def step(ids: torch.Tensor) -> float:
        began = time.monotonic()
        positions = torch.arange(P).expand(ids.shape[0], P)
        with torch.autocast("cpu", torch.bfloat16, enabled=sizes["precision"] != "fp32"):
            loss = model(input_ids=ids, masked_positions=positions, labels=ids[:, :P]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.monotonic() - began

    step(ids[:1])  # makes the moments, and loads what a process needs whatever the size
    seconds = step(ids)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(ids)
    measured = memory["weights"] + memory["Adam"] + highest_allocated(profiler)
    off = memory["peak"] / measured - 1
    logger.info(
        "torch allocated %.2f GB at most, the plan is off by %+.1f%%; the process had %.2f GB; a micro-batch of %s "
        "tokens took %.1f s", measured / GB, 100 * off, peak_resident_bytes() / GB, f"{B * L:,}", seconds,
    )  # fmt: skip
    return abs(off) <= TOLERANCE


if __name__ == "__main__":
    main()
