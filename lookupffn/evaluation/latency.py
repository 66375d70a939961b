"""How long functions and modules take: medians over alternating calls in one process.

Clock rates and caches differ between processes and from one moment to the next, so what is compared is called
alternately.

M: tokens in a call, d: hidden size.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def medians(functions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median seconds a call of each function, called alternately after one call each to warm up.

    With one thread these are seconds of CPU time, which other processes disturb less.

    Args:
        functions: what to call, by name.
        repeat: calls that a median is over.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            start = clock()
            function()
            times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def runner(module: nn.Module, inputs: Sequence[Tensor], mode: str) -> Callable[[], None]:
    """A function that passes every input through the module, and back if ``mode`` is "training", not "inference"."""

    def infer() -> None:
        with torch.inference_mode():
            for x in inputs:
                module(x)

    def train() -> None:
        for x in inputs:
            module(x).backward(torch.ones_like(x))
            for parameter in module.parameters():
                parameter.grad = None

    return train if mode == "training" else infer


def layers_runner(modules: Sequence[nn.Module], inputs: Sequence[Tensor]) -> Callable[[], None]:
    """A function that passes each input through its own module at inference, as the layers of a model do.

    Args:
        modules: in evaluation mode.
        inputs: [M, d] for each.
    """

    def infer() -> None:
        with torch.inference_mode():
            for module, x in zip(modules, inputs, strict=True):
                module(x)

    return infer


@torch.inference_mode()
def module_inputs(modules: Sequence[nn.Module], call: Callable[[], Any]) -> list[Tensor]:
    """What each module gets as its first argument while ``call`` runs, tokens in rows: [M, d] for each.

    Args:
        modules: each is called once.
        call: for instance a model's forward.
    """
    caught: dict[nn.Module, Tensor] = {}

    def catch(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        caught[module] = arguments[0].flatten(0, -2).clone()

    hooks = [module.register_forward_pre_hook(catch) for module in modules]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return [caught[module] for module in modules]
