"""What a time is asked for: one feed-forward, how many tokens, in which precision, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass

from lookupffn.ops.bh4 import next_power_of_two

LEAST_BLOCK = 16  # smaller blocks of BH4 are joined: a vector of AVX-512


@dataclass(frozen=True)
class Point:
    """A lookup of a shape and a way to run it; the GEMM beside it has 4 d neurons.

    Attributes:
        d: hidden size.
        tables: T.
        rows: S, rows a table.
        probes: N.
        block: b of BH4; 0 for a dense projection.
        tokens: of a call.
        precision: "float32", "bfloat16" or "int8".
        threads: torch's.
        offset: of all inputs, which makes codes less even: their entropy falls. Only measuring looks at it.
    """

    d: int
    tables: int
    rows: int
    probes: int
    block: int
    tokens: int
    precision: str
    threads: int
    offset: float = 0.0

    @property
    def bits(self) -> int:
        """tau."""
        return self.rows.bit_length() - 1

    @property
    def padded(self) -> int:
        """d', the size of BH4."""
        return next_power_of_two(self.d)

    @property
    def joined_block(self) -> int:
        """b as the kernels have it."""
        return min(max(self.block, LEAST_BLOCK), self.padded)

    @property
    def copies(self) -> int:
        """r of BH4."""
        return -(-self.tables * self.bits // self.padded)
