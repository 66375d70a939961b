"""The time of a lookup in float32 or bfloat16 (lookupffn/ops/csrc/lookup_ffn.cpp, codes.cpp, gather.cpp)."""

from __future__ import annotations

from math import ceil

from lookupffn import cost
from lookupffn.ops.limits import CHECKED_ALONE, CHECKED_BYTES, CODES_AT_ONCE, LEAST_FOR_DIGITS, TILE
from lookupffn.profiling.explain.gemm import weights_seconds
from lookupffn.profiling.explain.work import CHUNK, TILE_PRODUCT, VECTOR, Lookup, has_tiles
from lookupffn.profiling.timing import BYTES

_CODE_BYTES = 8
# Measured on two cores of a Sapphire Rapids (docs/performance.md, d 512): BH4's time on tiles to its time without; the
# gather's time in float16 to its time in float32.
_TILE_PROJECTION = {"float32": 0.7, "bfloat16": 0.45}
_HALF_GATHER = 0.4


class FloatLookup(Lookup):
    """Codes of all tokens, then rows: in slices where each of their rows is read three times, else whole."""

    def parts(self) -> dict[str, float]:
        """See the base class."""
        p = self.point
        found = {"call": 0.0}
        if p.block:
            few, threads = self._few(), self._hash_threads()
            tiles = has_tiles(self.machine) and p.tokens >= LEAST_FOR_DIGITS
            faster = _TILE_PROJECTION[p.precision] if tiles else 1.0
            tile = p.tokens if few else self._tile()
            found["projection"] = self.bh4_projection(threads, tile, few, faster)
            found["transform"] = self.bh4_transform(threads, tile)
        else:
            found["projection"], found["transform"] = self._dense_projection(), 0.0
        found["hash"] = self._hash()
        gather, packing, resource = self._sliced() if self._slices_pay() else self._direct()
        in_memory = self.in_memory()
        if in_memory is not None and in_memory < gather + packing:
            gather, packing, resource = in_memory, 0.0, "memory"
        found["gather"], found["packing"] = self.use(resource, gather), packing
        self.use(self.where(self.table_bytes), packing)
        found["call"] = self.call(self._regions(), sum(found.values())) + self._checking() + self._rounding()
        return found

    def _checking(self) -> float:
        """Each call reads BH4's weights to see whether they are those that were folded."""
        p = self.point
        size = 4 * p.copies * p.padded * p.block * BYTES[p.precision]
        threads = self.threads if size > CHECKED_ALONE * CHECKED_BYTES else 1
        return self.use("cache", size / (self.shares["check"] * self.stream(size, threads))) if p.block else 0.0

    def _rounding(self) -> float:
        """Outputs in bfloat16 are sums in float32 first."""
        p = self.point
        count = p.tokens * p.d if p.precision == "bfloat16" else 0
        return self.use("arithmetic", self.cycles(count * self.shares["narrow_cycles"], self.threads))

    def _few(self) -> bool:
        """Whether threads share copies of BH4 and not tokens."""
        tokens = self.point.tokens
        return tokens < VECTOR or (tokens < 2 * VECTOR and self.point.copies > 1)

    def _tile(self) -> int:
        share = ceil(self.point.tokens / self.threads)
        rounds = ceil(share / TILE)
        return min(TILE, ceil(ceil(share / rounds) / VECTOR) * VECTOR)

    def _hash_threads(self) -> int:
        p = self.point
        return min(self.threads, p.copies if self._few() else ceil(p.tokens / self._tile()))

    def _regions(self) -> int:
        p = self.point
        few = self._few() and p.tokens >= 4
        alone = not self._slices_pay() and p.tokens * 4 * p.d < self._slice_bytes()  # then sums are added up at the end
        return 2 + few + alone

    def _dense_projection(self) -> float:
        p, s = self.point, self.shares
        columns = p.tables * p.bits
        weights = columns * p.d * BYTES[p.precision]
        tiles = p.precision == "bfloat16" and has_tiles(self.machine)
        share = TILE_PRODUCT if tiles else s[f"product_{p.precision}"]
        arithmetic = 2 * p.tokens * p.d * columns / (share * self.peak(self.threads, p.precision))
        read = weights_seconds(p.precision, weights, p.tokens, self.threads, self.machine, s)
        self.use("arithmetic" if arithmetic > read else "cache", arithmetic + read)
        return arithmetic + read

    def _hash(self) -> float:
        p = self.point
        flops = p.tokens * cost.hash_codes(p.tables, p.bits, p.probes)["hash"]
        if not self._few():
            return self.use("arithmetic", flops / (self.shares["hash"] * self.peak(self._hash_threads())))
        threads = self.threads if p.tokens >= 4 else 1
        reads = p.tokens * p.tables * p.probes
        seconds = flops / (self.shares["hash"] * self.peak(threads))
        return self.use("arithmetic", seconds + self.cycles(self.shares["put_cycles"] * reads, threads))

    def _slices_pay(self) -> bool:
        """The kernels' own rule (csrc/tables.h)."""
        p = self.point
        fits = p.rows * CHUNK * 4 <= 4 * self._slice_bytes()
        return p.tokens * p.probes >= 3 * p.rows and fits

    def _slice_bytes(self) -> float:
        return min(max(self.machine.levels[1].bytes / 4, 128 << 10), 512 << 10)

    def _sliced(self) -> tuple[float, float, str]:
        """Tables copied by columns to where they fit the second-level cache: gather, packing, what binds."""
        p, s = self.point, self.shares
        chunks = ceil(p.d / CHUNK)
        row = 4 * CHUNK
        group = min(p.tables, max(1, int(self._slice_bytes() / (p.rows * row))))
        reads = p.tokens * p.tables * p.probes * chunks
        rows = reads * row / (s["sliced"] * self.rows(row, group * p.rows * row, self.threads))
        arithmetic = 2 * reads * CHUNK / self.peak(self.threads)
        # sums are read and written again for each group of tables but the first, which writes only
        splits = self._splits(chunks)
        kept = p.tokens * row / splits * min(self.threads, chunks * splits)
        passed = p.tokens * chunks * row * (2 * ceil(p.tables / group) - 1)
        sums = passed / (s["sums"] * self.stream(kept, self.threads))
        wide = 4 * p.d if p.precision == "bfloat16" else 0
        at_once = min(p.tokens, max(TILE, CODES_AT_ONCE // max(_CODE_BYTES * p.tables * p.probes, wide)))
        calls = ceil(p.tokens / at_once)
        # a column of slices for each thread, or tokens split, and then each of them copies
        copies = calls * splits
        packed = copies * self.table_bytes / (s["packing"] * self.stream(self.table_bytes, self.threads))
        if p.precision != "float32":
            numbers = copies * p.tables * p.rows * p.d
            packed = max(packed, numbers / (s["packing_widen"] * self.peak(self.threads)))
            if has_tiles(self.machine):  # they come with arithmetic in float16
                rows, arithmetic = _HALF_GATHER * rows, _HALF_GATHER * arithmetic
        return max(rows, arithmetic) + sums, packed, "arithmetic" if arithmetic > rows else "cache"

    def _splits(self, chunks: int) -> int:
        """Parts of the tokens, each of which copies the tables: the kernels' own rule (csrc/tables.h)."""
        wanted = 1 if chunks >= self.threads else ceil(self.threads / chunks)
        return min(wanted, max(1, self.point.tokens // 64))

    def _direct(self) -> tuple[float, float, str]:
        """Whole rows from wherever they lie; those that several tokens want come from the second-level cache again."""
        p, s = self.point, self.shares
        row = p.d * BYTES[p.precision]
        reads = p.tokens * p.tables * p.probes
        tile = max(1, min(p.tokens, int(self._slice_bytes() / (4 * p.d))))
        distinct = p.tokens / tile * p.tables * self.distinct(tile * p.probes)
        touched = p.tables * 2**self.entropy * row + self.between
        far = touched > self.last_cache
        share = s["direct_memory" if far else "direct"]
        first = distinct * row / (share * self.rows(row, touched, self.threads))
        again = (
            (reads - distinct) * row / (s["direct"] * self.rows(row, self.machine.levels[1].bytes / 2, self.threads))
        )
        kind = "adds" if p.precision == "float32" else f"adds_{p.precision}"
        arithmetic = 2 * reads * p.d / (s[kind] * self.peak(self.threads))
        first += self.cycles(reads * s["read_cycles"], self.threads)
        tiles = ceil(p.tokens / tile)
        idle = ceil(tiles / self.threads) * self.threads / tiles if tiles >= self.threads else 1.0
        first, again, arithmetic = idle * first, idle * again, idle * arithmetic
        where = "arithmetic" if arithmetic > first + again else "memory" if far else "cache"
        return max(first + again, arithmetic), 0.0, where
