import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn import UserError, build_ffn


def reference(ffn, x):
    """Every head scores all num_keys^2 keys; also the rows read."""
    n, q = ffn.options.num_keys, ffn.options.key_size // 2
    outputs, rows = [], []
    for token in x:
        y = torch.zeros_like(token)
        for head, query in enumerate((ffn.query.weight @ token + ffn.query.bias).split(2 * q)):
            query = torch.nn.functional.layer_norm(query, (2 * q,), ffn.query_norm.weight, ffn.query_norm.bias)
            first, second = ffn.keys[head, 0] @ query[:q], ffn.keys[head, 1] @ query[q:]
            best = (first[:, None] + second[None, :]).flatten().topk(ffn.options.top_k)
            y = y + best.values.softmax(0) @ ffn.values[best.indices]
            rows += best.indices.tolist()
            assert max(rows) < n * n
        outputs.append(y)
    return torch.stack(outputs), rows


def build(d, heads, n, q, k):
    ffn = build_ffn("product_key", hidden_size=d, heads=heads, num_keys=n, key_size=2 * q, top_k=min(k, n))
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    return ffn


@given(d=st.integers(1, 12), heads=st.integers(1, 3), n=st.integers(1, 12), q=st.integers(2, 5), k=st.integers(1, 12))
def test_outputs_and_gradients_match_the_formula(d, heads, n, q, k):
    ffn = build(d, heads, n, q, k)
    x = torch.randn(4, d, requires_grad=True)
    y, (expected, _) = ffn(x), reference(ffn, x)
    assert torch.allclose(y, expected, atol=1e-4)
    upstream = torch.randn_like(y)
    variables = (x, *ffn.parameters())
    for a, b in zip(
        torch.autograd.grad(y, variables, upstream), torch.autograd.grad(expected, variables, upstream), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-3)


def test_no_tensor_of_size_tokens_by_rows_by_hidden():
    M, H, k, d = 512, 4, 32, 128
    ffn = build_ffn("product_key", hidden_size=d, heads=H, num_keys=64, top_k=k)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        ffn(torch.randn(M, d, requires_grad=True)).sum().backward()
    assert largest < M * H * k * d // 4


def test_default_key_size_is_the_papers():
    assert build_ffn("product_key", hidden_size=1024, num_keys=32).options.key_size == 256
    assert build_ffn("product_key", hidden_size=100).options.key_size == 24


def test_roles():
    ffn = build_ffn("product_key", hidden_size=8)
    roles = ffn.parameter_roles()
    assert roles["tables"] == [ffn.values]
    assert {id(p) for role in roles.values() for p in role} == {id(p) for p in ffn.parameters()}


def test_statistics_are_of_the_rows_read_in_evaluation():
    ffn = build(8, heads=2, n=4, q=2, k=2).eval()
    x = torch.randn(5, 8)
    ffn(x)
    ffn.collect_statistics(True)
    ffn.train()(x)
    assert ffn.statistics() == {}
    ffn.eval()(x[:2])
    ffn(x[2:])
    _, rows = reference(ffn, x)
    shares = torch.tensor([rows.count(row) / len(rows) for row in set(rows)])
    assert ffn.statistics() == {
        "code_entropy_bits": pytest.approx(-(shares * shares.log2()).sum().item(), abs=1e-5),
        "rows_addressed": len(set(rows)) / 16,
    }


def test_cost_by_hand():
    cost = build_ffn("product_key", hidden_size=10, heads=2, num_keys=6, key_size=4, top_k=3).cost()
    # of the 9 sums of two descending triples, ranks 11 12 13 21 31 may be among the 3 largest
    assert cost.flops_by_part == {
        "query": 2 * 10 * 8,
        "keys": 2 * 2 * 6 * 2 * 2,
        "selection": 2 * (6 + 6 + 5),
        "sums": 2 * 5,
        "gather": 2 * 3 * 2 * 10,
    }
    dense = 10 * 8 + 8 + 2 * 4 + 2 * 2 * 6 * 2
    assert (cost.parameters, cost.parameters_touched) == (dense + 36 * 10, dense + 2 * 3 * 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be a whole number of at least 1"),
        ({"num_keys": 0}, "num_keys must be a whole number of at least 1"),
        ({"num_keys": 16}, r"top_k must be from 1 to num_keys \(16\), not 32"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"key_size": 5}, "key_size must be even"),
        ({"key_size": 0}, "key_size must be a whole number of at least 2"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("product_key", hidden_size=8, **options)
