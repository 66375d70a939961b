"""Where a feed-forward's time goes, by part, without a change to the kernels: samples of the program counter.

The kernels inline everything, so that a sample's part is found through debugging information: they must be compiled
with LOOKUPFFN_CXXFLAGS=-g. addr2line (of binutils, which compilers bring) names the functions inlined at an address.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from lookupffn.errors import UserError
from lookupffn.ops.library import KERNELS
from lookupffn.profiling.loops import library

PARTS = ("projection", "transform", "hash", "gather", "packing", "call")
_INTERVAL_US = 250
_MOST = 1 << 18

# innermost function first; what none of these names is the call
_FUNCTIONS = (
    (
        r"[Ss]trip|product_rest|block_product|tile_product|project_digits|split_tokens|project_on_tiles|run_vnni512|"
        r"run_amx|^run$|dispatch_rows|int8_product|quantize|pairs_|Int8Projection",
        "projection",
    ),
    (r"butterfly|across_blocks", "transform"),
    (r"hash_lanes|hash_across|put_reads|hash_dense", "hash"),
    (r"^pack(_slice|_group)?$", "packing"),
    (r"sum_reads|add_chunk|look_up|add_reads|add_whole_rows|add_group|gather", "gather"),
    (r"project|mixed|bh4_|hash_many|hash_few|hash_all", "projection"),
)


@contextmanager
def sampling() -> Iterator[None]:
    """Takes samples of the calling thread while the block runs; ``part_shares`` tells what they show.

    It takes part in all parallel regions, so that its samples are shares of the time that passes.

    Raises:
        UserError: the loops cannot be compiled.
    """
    library().sampler_start(_INTERVAL_US)
    try:
        yield
    finally:
        library().sampler_stop()


@contextmanager
def kept() -> Iterator[None]:
    """Samples count only inside of this."""
    library().sampler_keep(True)
    try:
        yield
    finally:
        library().sampler_keep(False)


def samples() -> Counter[int]:
    """How often each address of the kernels' file was sampled since the last call; -1 is code outside of it.

    Waiting for other threads in OpenMP's library does not count.
    """
    counters = (ctypes.c_uint64 * _MOST)()
    taken = library().sampler_take(counters, _MOST)
    addresses = np.frombuffer(counters, dtype=np.uint64, count=taken)
    inside, waiting = (_offsets(addresses, name) for name in (str(KERNELS.path()), "libgomp"))
    return Counter(
        -1 if at is None else at for at, wait in zip(inside, waiting, strict=True) if at is not None or wait is None
    )


def part_shares(counted: Sequence[Counter[int]]) -> list[dict[str, float]]:
    """The share of each of ``PARTS`` in each of some samples; empty where nothing was sampled.

    Raises:
        UserError: there is no addr2line.
    """
    addresses = sorted({address for one in counted for address in one if address >= 0})
    part_of = {-1: "call"}
    part_of |= {at: _part(names) for at, names in zip(addresses, _inlined(KERNELS.path(), addresses), strict=True)}
    shares = []
    for one in counted:
        parts: Counter[str] = Counter()
        for address, times in one.items():
            parts[part_of[address]] += times
        total = parts.total()
        shares.append({part: parts[part] / total for part in PARTS} if total else {})
    return shares


def _offsets(addresses: np.ndarray, file: str) -> list[int | None]:
    """Addresses as they are in a loaded file whose path contains ``file``; None for those outside of its code."""
    found: list[int | None] = [None] * len(addresses)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and file in fields[5] and "x" in fields[1]:
            first, last = (int(part, 16) for part in fields[0].split("-"))
            begin = first - int(fields[2], 16)  # as if the file were mapped in one piece
            for i in np.flatnonzero((addresses >= first) & (addresses < last)):
                found[i] = int(addresses[i]) - begin
    return found


def _inlined(path: Path, offsets: Sequence[int]) -> list[list[str]]:
    """The functions at addresses of a library's file, innermost first."""
    if not offsets:
        return []
    if shutil.which("addr2line") is None:
        raise UserError("no addr2line: install binutils to see where the time goes")
    command = ["addr2line", "-e", str(path), "-f", "-i", "-C", "-a"]
    text = "\n".join(hex(offset) for offset in offsets)
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, check=True)
    found: list[list[str]] = []
    lines = iter(result.stdout.splitlines())
    for line in lines:
        if line.startswith("0x"):
            found.append([])
        else:
            found[-1].append(_bare(line))
            next(lines)  # file and line
    return found


@cache
def _bare(name: str) -> str:
    """A function's name without namespaces, templates and arguments."""
    name = re.sub(r"\(anonymous namespace\)::|lookupffn::", "", name)
    name = re.sub(r"^\w[\w ]*[ *&]+(?=\w+[<(])", "", name)
    return re.split(r"[<(]", name)[0]


def _part(names: Sequence[str]) -> str:
    for name in names:
        for pattern, part in _FUNCTIONS:
            if re.search(pattern, name):
                return part
    return "call"
