"""The time of a lookup whose weights are prepared for int8 (lookupffn/ops/csrc/int8_layer.cpp, int8_lookup.cpp)."""

from __future__ import annotations

from math import ceil

from lookupffn import cost
from lookupffn.profiling.explain.work import CHUNK, TILE, TILE_PRODUCT, Lookup, has_tiles

_FEW_A_THREAD = 8  # tokens: fewer, and threads share the weights instead
_INT8_SPEED = 4  # products in int8 in the time of one in float32, as the kernels take it
_GROUP = 16  # tables that are hashed together
_SLICE_BYTES = 512 << 10
_READ_BYTES = 4 << 20
_MOST_FETCHED = 2048  # tokens of a call in which the next token's rows are prefetched


class Int8Lookup(Lookup):
    """Hash inputs by BH4 in float32 or by one int8 matrix, whichever does less; then rows of 64 bytes, chunk by chunk.

    The tables are padded to whole groups of 16, and scores are rounded to int8 as they are put beside their rows.
    """

    def parts(self) -> dict[str, float]:
        """See the base class."""
        p = self.point
        few = p.tokens <= _FEW_A_THREAD * self.threads
        found = {"call": self.call(2 + (few and p.tokens >= 4))}
        if self.bh4_pays():
            tasks = p.copies if few else self._tasks
            threads, tile = min(self.threads, tasks), ceil(p.tokens / (1 if few else tasks))
            found["projection"] = self.bh4_projection(threads, tile, few)
            found["transform"] = self.bh4_transform(threads, tile)
        else:
            found["projection"], found["transform"] = self._product(few), 0.0
        found["hash"] = self._hash(few)
        gather, resource = self._gather()
        in_memory = self.in_memory()
        if in_memory is not None and in_memory < gather:
            gather, resource = in_memory, "memory"
        found["gather"], found["packing"] = self.use(resource, gather), 0.0
        return found

    def bh4_pays(self) -> bool:
        """The kernels' own rule (csrc/int8_layer.cpp)."""
        p = self.point
        if not p.block:
            return False
        levels = (p.padded // p.joined_block).bit_length() - 1
        work = p.copies * 4 * p.padded * (p.joined_block + levels)
        return work <= p.tables * p.bits * p.d / _INT8_SPEED * 5 / 4

    @property
    def _tables(self) -> int:
        return ceil(self.point.tables / _GROUP) * _GROUP

    @property
    def _tasks(self) -> int:
        """Blocks of tokens, even over the threads, that are hashed one by one."""
        return sum(self._even(ceil(tokens / TILE)) for tokens in self._calls())

    def _even(self, tasks: int) -> int:
        return ceil(tasks / self.threads) * self.threads

    def _calls(self) -> list[float]:
        """Tokens that are hashed and looked up at a time."""
        p = self.point
        at_once = max(TILE, _READ_BYTES // (5 * self._tables * p.probes + 8) // TILE * TILE)
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

    def _hash(self, few: bool) -> float:
        """Codes, scores and their scales: those of rows are read at random."""
        p, s = self.point, self.shares
        threads = min(self.threads, p.tokens)
        threads = 1 if p.tokens < 4 else threads
        reads = p.tokens * self._tables * p.probes
        flops = p.tokens * cost.hash_codes(self._tables, p.bits, p.probes)["hash"]
        seconds = flops / (s["hash"] * self.peak(threads)) + self.cycles(reads * s["int8_put_cycles"], threads)
        scales = 4 * self._tables * 2**self.entropy
        return self.longer(seconds, reads * 64 / (s["int8_scales"] * self.rows(64, scales, threads, "plain")))

    def _gather(self) -> tuple[float, str]:
        """Rows of 64 bytes of one chunk after another: first from where the tables lie, then from the cache again."""
        p, s, tables = self.point, self.shares, self._tables
        chunks = ceil(p.d / CHUNK)
        parts = 1 if chunks >= self.threads else min(max(p.tokens // 64, 1), self.threads)
        tasks = chunks * parts
        threads = tasks / ceil(tasks / min(self.threads, tasks))  # that are busy on average
        calls = len(self._calls())
        tokens = p.tokens / calls / parts
        few = tokens * p.probes < 2 * p.rows
        groups = tables // _GROUP
        group = groups if few else min(max(1, _SLICE_BYTES // (p.rows * CHUNK * _GROUP)), groups)
        passes = ceil(groups / group)
        distinct = self.distinct(tokens * p.probes)
        reads = p.tokens * tables * p.probes * chunks
        first = calls * parts * chunks * tables * distinct
        whole = tables * 2**self.entropy * chunks * CHUNK
        # a chunk's first token finds nothing on its way
        alone = min(1.0, 1 / tokens) if tokens <= _MOST_FETCHED else 1.0
        near = group * _GROUP * distinct * CHUNK
        busy = max(1, int(threads))
        a_byte = alone / self.rows(CHUNK, whole, busy, "plain") + (1 - alone) / self.rows(CHUNK, whole, busy)
        far = first * CHUNK * a_byte / s["int8_far"] * busy / threads
        again = (reads - first) * CHUNK / (s["int8_near"] * self.rows(CHUNK, near, busy)) * busy / threads
        adds = 2 * reads * CHUNK / (s["int8_adds"] * self.peak(1, "int8") * threads)
        adds += self.cycles(p.tokens * chunks * passes * s["int8_token_cycles"], 1) / threads
        seconds = max(adds, far + again)
        return seconds, "arithmetic" if adds >= far + again else self.where(whole if far > again else near)
