"""What a token costs: FLOPs, parameters, bytes. Pure arithmetic, no tensors.

One set of rules for every feed-forward, so that figures compare:
- a multiply and an add are two FLOPs;
- evaluating a nonlinearity (GELU, softmax, exp, tanh), adding a bias, normalising and dropping out count nothing;
- choosing the largest of n scores (argmax, top-k, a nearest second code) counts one FLOP for each of the n; other
  comparisons (the sign of a hash input, the branch of a tree) and integer operations count nothing;
- a parameter is touched if a token that is processed alone reads it; bytes are those of the parameters touched.
Figures are per token of inference. A training step costs three times the forward's FLOPs (forward, and a backward
with respect to inputs and to weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

BYTES_PER_PARAMETER = 4  # float32
TRAINING_MULTIPLE = 3


@dataclass(frozen=True)
class Cost:
    """Cost of one token.

    Attributes:
        flops_by_part: FLOPs of each named part.
        parameters: how many parameters exist.
        parameters_touched: how many of them one token reads.
        bytes: bytes of the parameters touched.
    """

    flops_by_part: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    parameters_touched: float = 0
    bytes: float = 0

    @property
    def flops(self) -> float:
        """All parts together."""
        return sum(self.flops_by_part.values())

    def scaled(self, times: int) -> Cost:
        """The cost of ``times`` layers like this one."""
        return Cost(
            {part: times * flops for part, flops in self.flops_by_part.items()},
            times * self.parameters,
            times * self.parameters_touched,
            times * self.bytes,
        )

    def prefixed(self, prefix: str) -> Cost:
        """The same cost, each part named ``prefix.part``."""
        parts = {f"{prefix}.{part}": flops for part, flops in self.flops_by_part.items()}
        return Cost(parts, self.parameters, self.parameters_touched, self.bytes)


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of several costs; parts of the same name are added."""
    parts: dict[str, float] = {}
    parameters, touched, size = 0, 0.0, 0.0
    for cost in costs:
        for part, flops in cost.flops_by_part.items():
            parts[part] = parts.get(part, 0) + flops
        parameters += cost.parameters
        touched += cost.parameters_touched
        size += cost.bytes
    return Cost(parts, parameters, touched, size)


def of(flops_by_part: Mapping[str, float], parameters: int, touched: float | None = None) -> Cost:
    """A cost from its FLOPs and parameters; all parameters are touched unless said otherwise."""
    touched = parameters if touched is None else touched
    return Cost(dict(flops_by_part), parameters, touched, BYTES_PER_PARAMETER * touched)


def linear(inputs: int, outputs: int, bias: bool = True) -> Cost:
    """A dense layer: 2 * inputs * outputs FLOPs a token."""
    return of({"linear": 2 * inputs * outputs}, inputs * outputs + (outputs if bias else 0))


def layer_norm(size: int) -> Cost:
    """A LayerNorm: no FLOPs by the rules above, two parameters a feature."""
    return of({}, 2 * size)


def gemm_ffn(hidden_size: int, intermediate_size: int, outputs: int | None = None) -> Cost:
    """Linear, nonlinearity, Linear; as many outputs as inputs unless told."""
    outputs = hidden_size if outputs is None else outputs
    both = total([linear(hidden_size, intermediate_size), linear(intermediate_size, outputs)])
    return of({"gemm": both.flops}, both.parameters)


def bh4_projection(size: int, copies: int, block_size: int) -> dict[str, float]:
    """FLOPs of ``copies`` BH4 products of ``size`` (a power of two), mixed with their input.

    Four block-diagonal products of 2 * size * block_size, four Hadamard transforms of size * log2(size) adds, and a
    multiply and an add a coordinate for the mix (alpha folds into the last factor).
    """
    log2 = size.bit_length() - 1
    return {
        "projection": copies * 4 * 2 * size * block_size + copies * 2 * size,
        "hadamard": copies * 4 * size * log2,
    }


def hash_codes(num_tables: int, bits: int, num_probes: int) -> dict[str, float]:
    """FLOPs of codes and scores.

    For each bit: an add for sum |z|, an add for 1 + exp(-2|z|), a multiply for the product. For each table and probe:
    two for inner product times probability, and two more for each probe after the first (its flipped mass). The second
    probe is found by the smallest of the bits; more of them are, bit by bit, the best of twice as many.
    """
    doublings = bits - (num_probes.bit_length() - 1)
    chosen_from = 2 * num_probes * doublings if num_probes > 2 else bits * (num_probes - 1)
    return {"hash": num_tables * (3 * bits + 2 * num_probes + 2 * (num_probes - 1) + chosen_from)}


def gather(num_tables: int, num_probes: int, hidden_size: int) -> dict[str, float]:
    """FLOPs of adding num_tables * num_probes scored rows of ``hidden_size``."""
    return {"gather": 2 * num_tables * num_probes * hidden_size}


def attention(hidden_size: int, sequence_length: int, projections: Cost | None = None) -> Cost:
    """Bidirectional self-attention of one layer: projections, and scores and sums over the whole sequence.

    Args:
        hidden_size: of the layer.
        sequence_length: tokens attention runs over.
        projections: of queries, keys, values and output together; dense ones if None.
    """
    if projections is None:
        projections = linear(hidden_size, hidden_size).scaled(4)
    flops = {"projections": projections.flops, "scores": 2 * 2 * sequence_length * hidden_size}
    return replace(projections, flops_by_part=flops)


def embeddings(hidden_size: int, vocab_size: int, positions: int, token_types: int) -> Cost:
    """Token, position and type embeddings: one row of each is read."""
    return of({}, (vocab_size + positions + token_types) * hidden_size, touched=3 * hidden_size)


def lm_head(hidden_size: int, vocab_size: int, mask_rate: float) -> Cost:
    """The head on the masked positions only, spread over all tokens; its output matrix is the token embedding's."""
    flops = mask_rate * (2 * hidden_size * hidden_size + 2 * hidden_size * vocab_size)
    own = hidden_size * hidden_size + hidden_size + 2 * hidden_size + vocab_size
    return of({"lm_head": flops}, own, touched=mask_rate * (own + hidden_size * vocab_size))


def classification_head(hidden_size: int, labels: int, sequence_length: float) -> Cost:
    """RoBERTa's head on the first token of a sequence, spread over its tokens."""
    both = total([linear(hidden_size, hidden_size), linear(hidden_size, labels)])
    share = 1 / sequence_length
    return of({"classification_head": share * both.flops}, both.parameters, touched=share * both.parameters)
