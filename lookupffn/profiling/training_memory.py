"""What a step of masked language modelling needs of memory, by its terms, before there is a machine to try it on.

Dimensions: B sequences a micro-batch, L tokens a sequence, P masked tokens a sequence, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.profiler import profile
from transformers import PreTrainedModel

FLOAT, HALF = 4, 2
# sequences that the activations are measured on; memory is linear in their number
_FEW, _MORE = 2, 4
OTHER = "embeddings, norms and residuals"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process.

    Attributes:
        weights: float32.
        gradients: float32, of all weights: tables get dense ones.
        optimizer: Adam's two moments, float32.
        copies: half-precision copies of weights that autocast keeps until the backward is done.
        activations: what the forward keeps for the backward, by part of the model.
        logits: of the masked tokens, while the loss is computed, beside what is kept: half-precision and float32
            ones (float32 alone without autocast); the backward needs as much again once these are gone.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: dict[str, int]
    logits: int

    @property
    def peak(self) -> int:
        """At the loss, when no gradients are there yet, or in the optimizer's step, when all of them are."""
        at_loss = self.copies + sum(self.activations.values()) + self.logits
        return self.weights + self.optimizer + max(at_loss, self.gradients)


def plan_memory(
    model: PreTrainedModel, *, sequences: int, length: int, masked: int, precision: str, attention: str
) -> MemoryPlan:
    """Memory of a training step of masked language modelling, beside what the process needs without a model.

    The activations are counted in forwards of a few random sequences on this machine; they are linear in the number of
    sequences.

    Args:
        model: a masked language model, as it will be trained; its weights do not matter.
        sequences: B.
        length: L.
        masked: P.
        precision: "fp32", "bf16" or "fp16".
        attention: of transformers, "sdpa" or "eager".
    """
    model.set_attn_implementation(attention)
    few, more = (_kept_by_forward(model, n, length, masked, precision) for n in (_FEW, _MORE))
    a_sequence = {part: (more[part] - few[part]) // (_MORE - _FEW) for part in more}
    parameters = sum(p.numel() for p in model.parameters())
    reduced = precision != "fp32"
    return MemoryPlan(
        weights=FLOAT * parameters,
        gradients=FLOAT * sum(p.numel() for p in model.parameters() if p.requires_grad),
        optimizer=2 * FLOAT * parameters,
        copies=sum(few.values()) - _FEW * sum(a_sequence.values()),
        activations={part: sequences * size for part, size in a_sequence.items()},
        logits=sequences * masked * model.config.vocab_size * (FLOAT + HALF * reduced),
    )


def highest_allocated(profiler: profile) -> int:
    """Bytes that torch's allocator had given out at most, above where the profile began.

    Args:
        profiler: of torch, finished, with ``profile_memory=True``.
    """
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def _kept_by_forward(
    model: PreTrainedModel, sequences: int, length: int, masked: int, precision: str
) -> dict[str, int]:
    """Bytes that one forward keeps, by part; weights themselves do not count."""
    ids = torch.randint(model.config.vocab_size, (sequences, length))
    positions = torch.arange(masked).expand(sequences, masked)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # held, so that no address is used twice
    sizes: dict[str, int] = defaultdict(int)
    inside: list[str] = []

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = t
            rest = "head" if t.shape[-1:] == (model.config.vocab_size,) else OTHER  # the loss is no module
            sizes[inside[-1] if inside else rest] += storage.nbytes()
        return t

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
    with _parts(model, inside), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast:
        model.train()(input_ids=ids, masked_positions=positions, labels=ids[:, :masked])
    return dict(sizes)


@contextmanager
def _parts(model: PreTrainedModel, inside: list[str]) -> Iterator[None]:
    """Inside the block ``inside`` ends with the part of the model that is being computed."""
    named: dict[str, list[nn.Module]] = {
        "attention": [layer.attention for layer in model.base_model.encoder.layer],
        "feed-forwards": list(model.feed_forwards()),
        "head": [model.lm_head],
    }
    handles = []
    for part, modules in named.items():
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: inside.append(part)))
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
