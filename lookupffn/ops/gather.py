"""Weighted gather: look rows up in many tables and add them, each times its score.

Dimensions: M tokens, T tables, S rows a table, N probes, d hidden size; K = T * N rows a token.

Nothing of size M x T x d exists. Forward and both gradients are torch's embedding bags: the gradient of the tables is
itself a bag, over the tokens that read a row, once the reads are sorted by row. That makes it deterministic too.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import embedding_bag

from lookupffn.ops.transforms import first_order, transformed

_INT32_LIMIT = 2**31 - 1
_EXPORTED_TABLES = 16


def _flat_rows(codes_MTN: Tensor, S: int) -> Tensor:
    """Row numbers in the flattened [T * S, d] table, [M, K]; 32 bits where they suffice, since they sort faster."""
    M, T, N = codes_MTN.shape
    dtype = torch.int32 if max(T * S, M * T * N) < _INT32_LIMIT else torch.int64
    first = torch.arange(T, device=codes_MTN.device, dtype=dtype).mul_(S).view(1, T, 1)
    return (codes_MTN.to(dtype) + first).view(M, T * N)


class _WeightedGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, table_TSd: Tensor, codes_MTN: Tensor, scores_MTN: Tensor) -> Tensor:
        T, S, d = table_TSd.shape
        rows_MK = _flat_rows(codes_MTN, S)
        scores_MK = scores_MTN.reshape(rows_MK.shape)
        ctx.save_for_backward(table_TSd, rows_MK, scores_MK)
        ctx.scores_shape = scores_MTN.shape
        return embedding_bag(rows_MK, table_TSd.view(T * S, d), per_sample_weights=scores_MK, mode="sum")

    @staticmethod
    @first_order
    def backward(ctx: FunctionCtx, grad_Md: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, rows_MK, scores_MK = ctx.saved_tensors
        grad_Md = grad_Md.contiguous()
        grad_table = grad_scores = None
        if ctx.needs_input_grad[0]:
            T, S, d = table.shape
            grad_table = sum_by_row(*sort_reads(rows_MK, T * S), scores_MK, grad_Md).view(T, S, d)
        if ctx.needs_input_grad[2]:
            grad_scores = row_products(grad_Md, rows_MK, table.flatten(0, 1)).view(ctx.scores_shape)
        return grad_table, None, grad_scores


def sort_reads(rows_MK: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Bring the reads of every row together.

    Args:
        rows_MK: [M, K] rows read by each token.
        num_rows: R, how many rows there are.

    Returns:
        order [M * K], the flattened reads sorted by row and then by token; first_read [R], where each row's begin.
    """
    rows = rows_MK.flatten()
    sorted_rows, order = torch.sort(rows, stable=True)
    return order, torch.searchsorted(sorted_rows, torch.arange(num_rows, device=rows.device, dtype=rows.dtype))


def sum_by_row(
    order: Tensor, first_read: Tensor, weights_MK: Tensor, x_Md: Tensor, longest: int | None = None
) -> Tensor:
    """[R, d]: for each row the sum of weight * x over the tokens that read it; reads as ``sort_reads`` gives them.

    Sums of more than ``longest`` reads are made in parts: a GPU adds each in one go, so that it waits for the longest.
    """
    tokens = torch.div(order, weights_MK.shape[1], rounding_mode="floor")
    weights = weights_MK.flatten()[order]
    if longest is None:
        return embedding_bag(tokens, x_Md, offsets=first_read, per_sample_weights=weights, mode="sum")
    every = torch.arange(0, order.shape[0], longest, device=order.device, dtype=first_read.dtype)
    first_of_part = torch.cat([first_read, every]).sort().values
    parts = embedding_bag(tokens, x_Md, offsets=first_of_part, per_sample_weights=weights, mode="sum")
    # where rows begin at the same place, all but the last of them are empty, and so are their parts
    first_part = torch.searchsorted(first_of_part, first_read)
    return embedding_bag(torch.arange(parts.shape[0], device=parts.device), parts, offsets=first_part, mode="sum")


def row_products(x_Md: Tensor, rows_MK: Tensor, table_Rd: Tensor) -> Tensor:
    """[M, K]: the inner product of each row read with the token's x."""
    M, K = rows_MK.shape
    index = rows_MK.flatten()
    offsets = torch.arange(M, device=index.device, dtype=index.dtype) * K
    tokens = torch.arange(M, device=index.device, dtype=index.dtype).repeat_interleave(K)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(x_Md, table_Rd, index, offsets, tokens, 0).view(
        M, K
    )


def _gather_plainly(table_TSd: Tensor, codes_MTN: Tensor, scores_MTN: Tensor) -> Tensor:
    tables = torch.arange(table_TSd.shape[0], device=codes_MTN.device).view(1, -1, 1)
    return (scores_MTN.unsqueeze(-1) * table_TSd[tables, codes_MTN.long()]).sum((1, 2))


def _gather_by_tables(table_TSd: Tensor, codes_MTN: Tensor, scores_MTN: Tensor) -> Tensor:
    """In operations that every exporter and engine has; a few tables at a time, for the rows read are all in memory."""
    parts = zip(
        *(t.split(_EXPORTED_TABLES, dim) for t, dim in ((table_TSd, 0), (codes_MTN, 1), (scores_MTN, 1))), strict=True
    )
    y_Md = None
    for table, codes, scores in parts:
        T, S, d = table.shape
        rows = (codes.long() + S * torch.arange(T, device=codes.device).view(1, T, 1)).flatten(1)
        part = torch.bmm(scores.flatten(1).unsqueeze(1), table.reshape(T * S, d)[rows]).squeeze(1)
        y_Md = part if y_Md is None else y_Md + part
    return y_Md


def weighted_gather(table_TSd: Tensor, codes_MTN: Tensor, scores_MTN: Tensor) -> Tensor:
    """y[m] = sum over k, n of scores[m, k, n] * table[k, codes[m, k, n]].

    Args:
        table_TSd: [T, S, d], contiguous.
        codes_MTN: [M, T, N] integers in [0, S).
        scores_MTN: [M, T, N]; converted to the type of the table.

    Returns:
        [M, d] in the type of the table. Differentiable in table and scores.

    Raises:
        ValueError: shapes do not fit together, or a code is out of range (checked on the CPU only: on a GPU the check
            would stop the queue of kernels at every call).
    """
    if table_TSd.dim() != 3 or codes_MTN.dim() != 3 or codes_MTN.shape[1] != table_TSd.shape[0]:
        raise ValueError(
            f"tables [T, S, d] and codes [M, T, N] do not fit: {list(table_TSd.shape)} and {list(codes_MTN.shape)}"
        )
    if scores_MTN.shape != codes_MTN.shape:
        raise ValueError(f"codes and scores differ in shape: {list(codes_MTN.shape)} and {list(scores_MTN.shape)}")
    scores_MTN = scores_MTN.to(table_TSd.dtype)
    if transformed():
        return _gather_plainly(table_TSd, codes_MTN, scores_MTN)
    if torch.compiler.is_exporting():
        return _gather_by_tables(table_TSd, codes_MTN, scores_MTN)
    S = table_TSd.shape[1]
    # in a graph that is being compiled there are no numbers to look at
    if codes_MTN.device.type == "cpu" and not torch.compiler.is_compiling() and codes_MTN.numel():
        low, high = (int(v) for v in codes_MTN.aminmax())
        if low < 0 or high >= S:
            raise ValueError(f"codes must lie in [0, {S}); found {low} to {high}")
    return _WeightedGather.apply(table_TSd, codes_MTN, scores_MTN)
