"""The lookup by the C++ kernels (csrc/lookup.cpp)."""

import torch
from torch import Tensor

from lookupffn.ops.library import kernels_available
from lookupffn.ops.limits import MAX_PROBES
from lookupffn.ops.lookup import operator  # noqa: F401 the schemas
from lookupffn.ops.transforms import transformed


def declines(z_MTt: Tensor, table_TSd: Tensor, num_probes: int, normaliser: str) -> str | None:
    """Why the kernels do not take a lookup: they are float32, on the CPU, with few probes of the whole softmax."""
    if z_MTt.device.type != "cpu" or table_TSd.device.type != "cpu":
        return ""
    for name, t in (("z", z_MTt), ("table", table_TSd)):
        if t.dtype is not torch.float32:
            return f"{name} is {t.dtype}, not float32"
    reason = declines_options(table_TSd.shape[1], num_probes, normaliser)
    if reason is not None:
        return reason
    return "" if transformed() or not kernels_available() else None


def declines_options(rows: int, num_probes: int, normaliser: str) -> str | None:
    """Why no kernel takes a lookup of these options; None if some do."""
    if normaliser != "all":
        return f"normaliser={normaliser}, where the kernels know all"
    if not 1 <= num_probes <= min(MAX_PROBES, rows):
        return f"{num_probes} probes, where the kernels know 1 to {min(MAX_PROBES, rows)}"
    return None if rows >= 2 else "tables of one row"


def lookup(z_MTt: Tensor, table_TSd: Tensor, num_probes: int, normaliser: str) -> Tensor:
    """See lookupffn.ops.lookup.lookup; for what is not declined."""
    z = z_MTt.flatten(1).contiguous()
    # an odd number of cache lines: the reads of one token then fall into different sets of the cache
    stride = ((z.shape[0] + 15) // 16 // 2 * 2 + 1) * 16
    return torch.ops.lookupffn.lookup_forward(z, table_TSd.contiguous(), num_probes, stride)[0]
