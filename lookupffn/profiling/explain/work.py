"""What the times of all lookups are made of: rates of the machine, calls, BH4, distinct rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import ceil

from lookupffn import cost
from lookupffn.profiling.machine import Machine
from lookupffn.profiling.timing import BYTES, Point

CHUNK = 64  # columns of a slice
VECTOR = 16  # tokens or tables that are hashed at once
_COOLING = 2e-3  # seconds of work after which half of what Python needs has left the caches
# Measured on two cores of a Sapphire Rapids (docs/performance.md): torch's product as a share of the tiles' peak.
TILE_PRODUCT = 0.075


def has_tiles(machine: Machine) -> bool:
    """Whether bfloat16 products run on matrix tiles (AMX): nothing else is as far from float32."""
    return machine.arithmetic["bfloat16"].one >= 16 * machine.arithmetic["float32"].one


class Lookup(ABC):
    """The time of one call, by part."""

    def __init__(self, point: Point, machine: Machine, entropy: float, shares: Mapping[str, float]) -> None:
        self.point, self.machine, self.entropy, self.shares = point, machine, entropy, shares
        self.threads = min(point.threads, machine.cores)
        self.used: dict[str, float] = {}  # seconds by resource

    @abstractmethod
    def parts(self) -> dict[str, float]:
        """Seconds by part."""

    def binding(self) -> str:
        """The resource that takes longest."""
        return max(self.used, key=self.used.__getitem__)

    def use(self, resource: str, seconds: float) -> float:
        """Books time on a resource; returns it."""
        self.used[resource] = self.used.get(resource, 0.0) + seconds
        return seconds

    def longer(self, arithmetic: float, movement: float, where: str = "cache") -> float:
        """Of two that overlap, the longer."""
        return self.use("arithmetic", arithmetic) if arithmetic >= movement else self.use(where, movement)

    @property
    def table_bytes(self) -> float:
        """All tables."""
        p = self.point
        return p.tables * p.rows * p.d * BYTES[p.precision]

    @property
    def between(self) -> float:
        """Bytes that are used between two calls and drive rows out of caches: GEMM's, or another layer's, weights."""
        p = self.point
        return self.shares["between"] * cost.gemm_ffn(p.d, 4 * p.d).parameters * BYTES[p.precision]

    @property
    def last_cache(self) -> float:
        """Bytes that the last cache holds, as the curves show."""
        return self.machine.levels[-2].seen_bytes

    def where(self, size: float) -> str:
        """The resource that holds so many bytes."""
        return "memory" if size > self.last_cache else "cache"

    def peak(self, threads: int, name: str = "float32") -> float:
        """Operations a second."""
        return 1e9 * self.machine.arithmetic[name].of(threads)

    def stream(self, size: float, threads: int) -> float:
        """Bytes a second in order."""
        return 1e9 * self.machine.stream_rate(size, threads)

    def rows(self, row: float, size: float, threads: int, access: str = "prefetched") -> float:
        """Bytes a second of rows at random."""
        return 1e9 * self.machine.row_rate(row, size, threads, access=access)

    def cycles(self, count: float, threads: int) -> float:
        """Seconds of cycles that some threads share."""
        return count / (1e9 * self.machine.clock_ghz * threads)

    def distinct(self, reads: float) -> float:
        """Rows of a table that so many reads touch: of 2^entropy equally likely ones."""
        even = 2**self.entropy
        return even * (1 - (1 - 1 / even) ** reads)

    def call(self, regions: int, work: float) -> float:
        """The way from Python to the kernel, and starting threads.

        Args:
            regions: parallel ones.
            work: seconds of everything else; the longer it lasts, the less of Python waits in a cache.
        """
        name, calls = f"lookup_{self.point.precision}", self.machine.call_us
        starts = regions * 1e-6 * self.shares["start_us"] if self.threads > 1 else 0.0
        cold = 1 + self.shares["call_cold"] * work / (work + _COOLING)
        return self.use("calls", 1e-6 * self.shares["call"] * cold * calls.get(name, calls["lookup"]) + starts)

    def bh4_projection(self, threads: int, tile: int, apart: bool, faster: float = 1.0, form: str = "float32") -> float:
        """BH4's block products: arithmetic, or reading all weights once a tile.

        Args:
            threads: that take part.
            tile: tokens that pass through the weights together.
            apart: each thread has its own copies, and so reads only a share of the weights.
            faster: factor of the arithmetic.
            form: type of weights and products, float32 or bfloat16; that by vectors and not by tiles.
        """
        p, s = self.point, self.shares
        peak = s["projection"] * self.peak(threads)
        if form == "bfloat16":
            peak = s["projection_bfloat16"] * min(self.peak(threads, "bfloat16"), 2 * self.peak(threads))
        flops = p.tokens * cost.bh4_projection(p.padded, p.copies, p.joined_block)["projection"]
        flops *= 1 + s["projection_edge"] / p.joined_block
        weights = BYTES[form] * 4 * p.copies * p.padded * p.joined_block
        passes = ceil(p.tokens / tile)
        if apart:
            read = weights / (s["weights"] * self.stream(weights, threads))
        else:
            read = weights * passes / (s["weights"] * self.stream(weights * threads, threads))
        return self.longer(faster * flops / peak, read)

    def bh4_transform(self, threads: int, tile: int) -> float:
        """The transforms across blocks: passes over a tile's buffers."""
        p = self.point
        levels = (p.padded // p.joined_block).bit_length() - 1
        if levels == 0:
            return 0.0
        touched = 8 * 4 * p.copies * p.padded * ceil(levels / 3) * p.tokens
        flops = 4 * p.copies * p.padded * levels * p.tokens
        buffers = 2 * 4 * p.padded * min(p.tokens, tile) * threads
        return self.longer(
            flops / (self.shares["projection"] * self.peak(threads)),
            touched / (self.shares["transform"] * self.stream(buffers, threads)),
        )

    def in_memory(self) -> float | None:
        """Rows added by the memory itself: only scores go there, and only sums come back."""
        p = self.point
        if not self.machine.gather_in_memory:
            return None
        reads = p.tokens * p.tables * p.probes
        rows = reads * p.d * BYTES[p.precision] / (1e9 * self.machine.gather_in_memory)
        moved = 4 * p.tokens * p.d + 8 * reads
        return rows + moved / self.stream(self.machine.levels[-1].bytes, self.threads)
