"""How long a feed-forward should take, by part, from cost and the machine alone. docs/hardware.md has the formulas.

A part's time is its arithmetic over the attainable peak or its bytes over the rate of the level where its working set
lies, whichever is longer; parts follow one another.

M: tokens, d: hidden size, T: tables, S: rows, N: probes, b: block, d': d padded, r: copies of BH4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from lookupffn import cost
from lookupffn.profiling.attained import attained
from lookupffn.profiling.machine import Machine
from lookupffn.profiling.precision import BYTES
from lookupffn.profiling.shape import Point

SLICE_COLUMNS = 64
_TILE, _VECTOR, _DIRECT_READS = 48, 16, 4
_CODE_BYTES, _CODES_AT_ONCE = 8, 24 << 20
_GELU_OPERATIONS = 8
_LEAST_FOR_TILES = 96
# Measured on two cores of a Sapphire Rapids (docs/performance.md, d 512): torch's bfloat16 product as a share of the
# tiles' peak; BH4's time on tiles to its time without; the gather's time in float16 to its time in float32.
TILE_PRODUCT = 0.075
TILE_PROJECTION = {"float32": 0.7, "bfloat16": 0.45, "int8": 0.45}
HALF_GATHER = 0.4
_LARGEST_KEPT = 32 << 20  # bytes: glibc takes larger memory from the system anew at each call, in pages to be cleared


@dataclass(frozen=True)
class Prediction:
    """Seconds a call.

    Attributes:
        lookup: by part: call, projection, transform, hash, gather, packing.
        gemm: by part: call, first product, activation, second product.
        binding: which of the machine's resources takes most of the lookup: arithmetic, cache, memory or calls.
    """

    lookup: Mapping[str, float]
    gemm: Mapping[str, float]
    binding: str

    @property
    def lookup_seconds(self) -> float:
        """All parts of the lookup."""
        return sum(self.lookup.values())

    @property
    def gemm_seconds(self) -> float:
        """All parts of GEMM."""
        return sum(self.gemm.values())

    @property
    def ratio(self) -> float:
        """How many times faster than GEMM."""
        return self.gemm_seconds / self.lookup_seconds


def predict(
    point: Point, machine: Machine, entropy: float | None = None, shares: Mapping[str, float] | None = None
) -> Prediction:
    """The time of a lookup and of GEMM beside it.

    Args:
        point: shape, tokens, precision and threads.
        machine: where.
        entropy: bits a code, as measured; tau if None, as with even codes.
        shares: what the kernels attain; attained.yaml's if None.
    """
    shares = attained() if shares is None else shares
    lookup = _Lookup(point, machine, point.bits if entropy is None else entropy, shares)
    return Prediction(lookup.parts(), gemm_parts(point, machine, shares), lookup.binding())


class _Lookup:
    def __init__(self, point: Point, machine: Machine, entropy: float, shares: Mapping[str, float]) -> None:
        self.point, self.machine, self.entropy, self.shares = point, machine, entropy, shares
        self.threads = min(point.threads, machine.cores)
        self.used: dict[str, float] = {}  # seconds by resource

    def parts(self) -> dict[str, float]:
        p = self.point
        found = {"call": self._call()}
        found["projection"] = self._projection() if p.block else self._dense_projection()
        found["transform"] = self._transform() if p.block else 0.0
        found["hash"] = self._hash()
        sliced, direct, in_memory = self._sliced(), self._direct(), self._in_memory()
        gather, packing, resource = min(
            (way for way in (sliced, direct, in_memory) if way), key=lambda way: sum(way[:2])
        )
        found["gather"], found["packing"] = gather, packing
        self._use(resource, gather)
        self._use("memory" if self._tables > self._last_cache() else "cache", packing)
        return found

    def binding(self) -> str:
        """The resource that takes longest."""
        return max(self.used, key=self.used.__getitem__)

    def _use(self, resource: str, seconds: float) -> float:
        self.used[resource] = self.used.get(resource, 0.0) + seconds
        return seconds

    def _longer(self, arithmetic: float, movement: float, where: str = "cache") -> float:
        return self._use("arithmetic", arithmetic) if arithmetic >= movement else self._use(where, movement)

    @property
    def _tables(self) -> float:
        p = self.point
        return p.tables * p.rows * p.d * BYTES[p.precision]

    def _last_cache(self) -> float:
        return self.machine.levels[-2].seen_bytes

    def _peak(self, threads: int, name: str = "float32") -> float:
        return 1e9 * self.machine.arithmetic[name].of(threads)

    def _stream(self, size: float, threads: int) -> float:
        return 1e9 * self.machine.stream_rate(size, threads)

    def _rows(self, row: float, size: float, threads: int) -> float:
        return 1e9 * self.machine.row_rate(row, size, threads)

    def _call(self) -> float:
        calls = self.machine.call_us
        name = f"lookup_{self.point.precision}"
        regions = 3e-6 * self.shares["start_us"] if self.threads > 1 else 0.0
        return self._use("calls", 1e-6 * self.shares["call"] * calls.get(name, calls["lookup"]) + regions)

    def _tile_threads(self) -> int:
        """Threads that project and hash: few tokens share out copies of BH4, more of them tokens."""
        p = self.point
        tasks = p.copies if p.tokens < _VECTOR else ceil(p.tokens / _VECTOR)
        return min(self.threads, tasks)

    def _projection(self) -> float:
        p, s, threads = self.point, self.shares, self._tile_threads()
        flops = p.tokens * cost.bh4_projection(p.padded, p.copies, p.joined_block)["projection"]
        flops *= 1 + s["projection_edge"] / p.joined_block
        weights = 4 * 4 * p.copies * p.padded * p.joined_block
        passes = ceil(p.tokens / _TILE)
        read = weights * passes / (s["weights"] * self._stream(weights * threads, threads))
        if p.tokens < _VECTOR and threads > 1:  # each thread reads its own copies only
            read = weights / (s["weights"] * self._stream(weights, threads))
        arithmetic = flops / (s["projection"] * self._peak(threads))
        if has_tiles(self.machine) and p.tokens >= _LEAST_FOR_TILES:
            arithmetic *= TILE_PROJECTION[p.precision]
        return self._longer(arithmetic, read)

    def _dense_projection(self) -> float:
        p, s = self.point, self.shares
        name = "bfloat16" if p.precision == "bfloat16" else "float32"
        columns = p.tables * p.bits
        weights = columns * p.d * BYTES[name]
        arithmetic = 2 * p.tokens * p.d * columns / (s[f"product_{name}"] * self._peak(self.threads, name))
        read = weights / (s[f"product_weights_{name}"] * self._stream(weights, self.threads))
        self._use("arithmetic" if arithmetic > read else "cache", arithmetic + read)
        return arithmetic + read

    def _transform(self) -> float:
        p, threads = self.point, self._tile_threads()
        levels = (p.padded // p.joined_block).bit_length() - 1
        if levels == 0:
            return 0.0
        touched = 8 * 4 * p.copies * p.padded * ceil(levels / 3) * p.tokens
        flops = 4 * p.copies * p.padded * levels * p.tokens
        buffers = 2 * 4 * p.padded * min(p.tokens, _TILE) * threads
        return self._longer(
            flops / (self.shares["projection"] * self._peak(threads)),
            touched / (self.shares["transform"] * self._stream(buffers, threads)),
        )

    def _hash(self) -> float:
        p = self.point
        flops = p.tokens * cost.hash_codes(p.tables, p.bits, p.probes)["hash"]
        if p.tokens < _VECTOR:
            return self._use("arithmetic", flops / (self.shares["hash_few"] * self._peak(1)))
        return self._use("arithmetic", flops / (self.shares["hash"] * self._peak(self._tile_threads())))

    def _slices_pay(self) -> bool:
        """The kernels' own rule (csrc/tables.h): rows are read three times, and a slice fits."""
        p = self.point
        fits = p.rows * SLICE_COLUMNS * 4 <= 4 * self._slice_bytes()
        return p.tokens * p.probes >= 3 * p.rows and fits

    def _slice_bytes(self) -> float:
        return min(max(self.machine.levels[1].bytes / 4, 128 << 10), 512 << 10)

    def _sliced(self) -> tuple[float, float, str]:
        """Tables copied by columns to where they fit the second-level cache: gather, packing, what binds."""
        p, s = self.point, self.shares
        chunks = ceil(p.d / SLICE_COLUMNS)
        row = 4 * SLICE_COLUMNS
        group = min(p.tables, max(1, int(self._slice_bytes() / (p.rows * row))))
        working = group * p.rows * row
        reads = p.tokens * p.tables * p.probes * chunks
        rows = reads * row / (s["sliced"] * self._rows(row, working, self.threads))
        arithmetic = 2 * reads * SLICE_COLUMNS / self._peak(self.threads)
        # what is beside the rows (codes, scores, sums of earlier groups) streams while rows are waited for
        at_once = min(p.tokens, max(_TILE, _CODES_AT_ONCE // (_CODE_BYTES * p.tables * p.probes)))
        calls = ceil(p.tokens / at_once)
        splits = ceil(self.threads / chunks) if chunks < self.threads else 1
        packed = calls * splits * self._tables / (s["packing"] * self._stream(self._tables, self.threads))
        if p.precision != "float32":
            numbers = calls * splits * p.tables * p.rows * p.d
            packed = max(packed, numbers / (s["packing_widen"] * self._peak(self.threads)))
        if has_tiles(self.machine) and p.precision != "float32":  # they come with arithmetic in float16
            rows, arithmetic = HALF_GATHER * rows, HALF_GATHER * arithmetic
        return max(rows, arithmetic), packed, "arithmetic" if arithmetic > rows else "cache"

    def _direct(self) -> tuple[float, float, str]:
        """Whole rows from wherever they lie; those that several tokens want come from the second-level cache again."""
        p, s = self.point, self.shares
        row = p.d * BYTES[p.precision]
        reads = p.tokens * p.tables * p.probes
        even = 2**self.entropy
        second = self.machine.levels[1].bytes
        tile = max(1, min(p.tokens, int(self._slice_bytes() / (4 * p.d))))
        distinct = p.tokens / tile * p.tables * even * (1 - (1 - 1 / even) ** (tile * p.probes))
        touched = p.tables * even * row
        far = touched > self._last_cache()
        share = s["direct_memory" if far else "direct"]
        first = distinct * row / (share * self._rows(row, touched, self.threads))
        again = (reads - distinct) * row / (s["direct"] * self._rows(row, second / 2, self.threads))
        kind = "adds" if p.precision == "float32" else f"adds_{p.precision}"
        arithmetic = 2 * reads * p.d / (s[kind] * self._peak(self.threads))
        first += reads * s["read_cycles"] / (1e9 * self.machine.clock_ghz * self.threads)
        where = "arithmetic" if arithmetic > first + again else "memory" if far else "cache"
        return max(first + again, arithmetic), 0.0, where

    def _in_memory(self) -> tuple[float, float, str] | None:
        """Rows added by the memory itself: only scores go there, and only sums come back."""
        p = self.point
        if not self.machine.gather_in_memory:
            return None
        row = p.d * BYTES[p.precision]
        rows = p.tokens * p.tables * p.probes * row / (1e9 * self.machine.gather_in_memory)
        moved = p.tokens * (4 * p.d + _CODE_BYTES * p.tables * p.probes)
        return rows + moved / self._stream(self.machine.levels[-1].bytes, self.threads), 0.0, "memory"


def has_tiles(machine: Machine) -> bool:
    """Whether bfloat16 products run on matrix tiles (AMX): nothing else is as far from float32."""
    return machine.arithmetic["bfloat16"].one >= 16 * machine.arithmetic["float32"].one


def gemm_parts(
    point: Point, machine: Machine, shares: Mapping[str, float], neurons: int | None = None
) -> dict[str, float]:
    """Seconds of GEMM's parts: torch's Linear in the point's precision, twice, and GELU.

    Args:
        point: its tables do not count.
        machine: where.
        shares: what torch attains.
        neurons: 4 d if None.
    """
    name, d, tokens = point.precision, point.d, point.tokens
    threads = min(point.threads, machine.cores)
    neurons = 4 * d if neurons is None else neurons
    peak = 1e9 * machine.arithmetic["float32"].of(threads)
    size = cost.gemm_ffn(d, neurons).parameters * BYTES[name]
    flops = tokens * cost.gemm_ffn(d, neurons).flops / 2
    attained_share = TILE_PRODUCT if name != "float32" and has_tiles(machine) else shares[f"product_{name}"]
    product = flops / (attained_share * 1e9 * machine.arithmetic[name].of(threads))
    product += size / 2 / (shares[f"product_weights_{name}"] * 1e9 * machine.stream_rate(size, threads))
    # torch rounds and scales for int8 on one thread
    own = 1e9 * machine.arithmetic["float32"].one if name == "int8" else peak
    product += tokens * (d + neurons) / (shares[f"elements_{name}"] * own)
    hidden = 4 * tokens * neurons if name == "int8" else BYTES[name] * tokens * neurons
    fresh = 1e-6 * machine.call_us["page"] * hidden / 4096 if hidden >= _LARGEST_KEPT else 0.0
    fresh *= shares[f"fresh_{name}"] / threads
    start = 1e-6 * shares[f"gemm_start_us_{name}"] if threads > 1 else 0.0
    calls = machine.call_us
    call = 1e-6 * shares["gemm_call"] * calls.get(f"gemm_{name}", calls["gemm"])
    return {
        "call": call + 3 * start,
        "first product": product + fresh,
        "activation": _GELU_OPERATIONS * tokens * neurons / (shares[f"activation_{name}"] * peak) + fresh,
        "second product": product,
    }
