"""The time of a lookup whose weights are prepared for int8 (lookupffn/ops/csrc/int8_layer.cpp, int8_lookup.cpp)."""

from __future__ import annotations

from math import ceil

from lookupffn import cost
from lookupffn.ops import limits
from lookupffn.profiling.explain.work import CHUNK, TILE_PRODUCT, Lookup, has_tiles


class Int8Lookup(Lookup):
    """Hash inputs by BH4 or by one int8 matrix, whichever the kernels take; then rows of 64 bytes, chunk by chunk.

    The tables are padded to whole groups of 16, and scores are rounded to int8 as they are put beside their rows.
    """

    def parts(self) -> dict[str, float]:
        """See the base class."""
        p = self.point
        few, form = p.tokens <= limits.FEW_A_THREAD * self.threads, self.projection_form()
        found = {"call": 0.0}
        if form == "int8":
            found["projection"], found["transform"] = self._product(few), 0.0
        else:
            tasks = p.copies if few else self._tasks
            threads, tile = min(self.threads, tasks), ceil(p.tokens / (1 if few else tasks))
            found["projection"] = self.bh4_projection(threads, tile, few, form=form)
            found["transform"] = self.bh4_transform(threads, tile)
        found["hash"] = self._hash()
        gather, resource = self._gather()
        in_memory = self.in_memory()
        if in_memory is not None and in_memory < gather:
            gather, resource = in_memory, "memory"
        found["gather"], found["packing"] = self.use(resource, gather), 0.0
        found["call"] = self.call(2 + (few and p.tokens >= 4), sum(found.values()))
        return found

    def projection_form(self) -> str:
        """The kernels' own rule (csrc/int8_projection.cpp): "int8", or BH4 in "float32" or "bfloat16"."""
        p = self.point
        cycles = {
            "int8": p.tables * p.bits * p.d // (limits.TILES_RATE if has_tiles(self.machine) else limits.INT8_RATE)
        }
        if p.block:
            levels = (p.padded // p.joined_block).bit_length() - 1
            forms = ["float32"]
            if self.machine.arithmetic["bfloat16"].one > 1.5 * self.machine.arithmetic["float32"].one:
                forms.append("bfloat16")
            slow = limits.FLOAT32_RATE
            for form in forms:
                rate = limits.BF16_RATE if form == "bfloat16" else slow
                passes = p.joined_block * slow // rate + levels + limits.PASSES
                cycles[form] = p.copies * 4 * p.padded * passes // slow
        return min(cycles, key=cycles.__getitem__)

    @property
    def _tables(self) -> int:
        return ceil(self.point.tables / limits.TABLE_GROUP) * limits.TABLE_GROUP

    @property
    def _tasks(self) -> int:
        """Blocks of tokens, even over the threads, that are hashed one by one."""
        return sum(self._even(ceil(tokens / limits.TILE)) for tokens in self._calls())

    def _even(self, tasks: int) -> int:
        return ceil(tasks / self.threads) * self.threads

    def _calls(self) -> list[float]:
        """Tokens that are hashed and looked up at a time."""
        p = self.point
        at_once = max(
            limits.TILE,
            limits.READ_BYTES // (5 * self._tables * p.probes + 8) // limits.TILE * limits.TILE,
        )
        return [min(at_once, p.tokens - first) for first in range(0, p.tokens, at_once)]

    def _product(self, few: bool) -> float:
        """The projection multiplied out: each task of tokens reads all of the matrix, or each thread a part of it."""
        p, s = self.point, self.shares
        columns, depth = self._tables * p.bits, ceil(p.d / CHUNK) * CHUNK
        threads = self.threads
        share = TILE_PRODUCT if has_tiles(self.machine) else s["int8_product"]
        arithmetic = 2 * p.tokens * columns * depth / (share * self.peak(threads, "int8"))
        passes, size = (1, columns * depth) if few else (self._tasks, columns * depth * threads)
        read = passes * columns * depth / (s["int8_weights"] * self.stream(size, threads))
        rounded = p.tokens * depth / (s["int8_round"] * self.peak(1 if few else threads))
        return self.longer(arithmetic + rounded, read)

    def _hash(self) -> float:
        """Codes, scores and their scales: those of rows are read at random."""
        p, s = self.point, self.shares
        threads = min(self.threads, p.tokens)
        threads = 1 if p.tokens < 4 else threads
        reads = p.tokens * self._tables * p.probes
        flops = p.tokens * cost.hash_codes(self._tables, p.bits, p.probes)["hash"]
        seconds = flops / (s["hash"] * self.peak(threads)) + self.cycles(reads * s["int8_put_cycles"], threads)
        if self.projection_form() != "int8":  # whose columns come in the order that hashing wants
            seconds += self.cycles(p.tokens * self._tables * s["int8_turn_cycles"], threads)
        self.use("arithmetic", seconds)
        # rows' scales, 16 to a line: each line first from afar, then from where the others are
        scales = 4 * self._tables * p.rows
        lines = min(reads, scales / 64)
        first = lines * 64 / self.rows(64, scales + self.between, threads, "plain")
        again = (reads - lines) * 64 / self.rows(64, scales, threads, "plain")
        return seconds + self.use("cache", (first + again) / s["int8_scales"])

    def _gather(self) -> tuple[float, str]:
        """Rows of 64 bytes of one chunk after another: first from where the tables lie, then from the cache again."""
        p, s, tables = self.point, self.shares, self._tables
        chunks = ceil(p.d / CHUNK)
        parts = 1 if chunks >= self.threads else min(max(p.tokens // 64, 1), self.threads)
        tasks = chunks * parts
        threads = tasks / ceil(tasks / min(self.threads, tasks))  # that are busy on average
        calls = len(self._calls())
        tokens = p.tokens / calls / parts
        reads = p.tokens * tables * p.probes * chunks
        whole = tables * 2**self.entropy * chunks * CHUNK
        busy = max(1, int(threads))
        # adding up rows, and the sums of a token's chunk, which become floats
        cycles = reads * s["int8_read_cycles"] + p.tokens * chunks * s["int8_token_cycles"]
        group_bytes = limits.TABLE_GROUP * p.rows * CHUNK
        if tokens * p.probes < 2 * p.rows or group_bytes > 2 * limits.SLICE_BYTES:
            rows = self._few_rows(reads, calls * parts * chunks, tokens, whole, busy) * busy / threads
            return self.cycles(cycles, 1) / threads + rows, self.where(whole)
        # slices come in order while others are read, once for each block of tokens
        groups = tables // limits.TABLE_GROUP
        group = min(max(1, limits.SLICE_BYTES // group_bytes), groups)
        blocks = ceil(tokens / limits.SLICE_TOKENS)
        cycles += p.tokens * chunks * (ceil(groups / group) - 1) * s["int8_pass_cycles"]
        near = reads * CHUNK / (s["int8_near"] * self.rows(CHUNK, 2 * group * group_bytes, busy)) * busy / threads
        size = tables * p.rows * chunks * CHUNK
        streamed = calls * parts * blocks * size / (s["int8_stream"] * self.stream(size, busy)) * busy / threads
        here = self.cycles(cycles, 1) / threads + near
        return here + streamed, "cache" if here >= streamed else self.where(size)

    def _few_rows(self, reads: float, turns: float, tokens: float, whole: float, threads: int) -> float:
        """Seconds of rows from wherever they lie, those that several tokens want from the cache again.

        Args:
            reads: all.
            turns: how often some tokens pass over all tables of a chunk.
            tokens: of a turn; its first finds nothing on its way.
            whole: bytes of all tables.
            threads: that are busy.
        """
        s, distinct = self.shares, self.distinct(tokens * self.point.probes)
        first = turns * self._tables * distinct
        alone = min(1.0, 1 / tokens)
        size = whole + self.between
        a_byte = alone / self.rows(CHUNK, size, threads, "plain") + (1 - alone) / self.rows(CHUNK, size, threads)
        near = self.rows(CHUNK, self._tables * distinct * CHUNK, threads)
        return first * CHUNK * a_byte / s["int8_far"] + (reads - first) * CHUNK / (s["int8_near"] * near)
