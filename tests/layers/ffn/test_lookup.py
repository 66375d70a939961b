import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookupffn import UserError, build_ffn
from tests.ops.bh4.test_reference import transcription as bh4_transcription
from tests.ops.test_gather import transcription as gather_transcription
from tests.ops.test_hash import transcription as hash_transcription


@given(
    d=st.integers(4, 40),
    num_tables=st.integers(1, 9),
    tau=st.integers(1, 6),
    dense=st.booleans(),
    alpha=st.sampled_from([0.0, 0.7, 1.0]),
    num_probes=st.integers(1, 4),
)
def test_matches_the_formulas(d, num_tables, tau, dense, alpha, num_probes):
    num_probes = min(num_probes, 1 << tau)
    ffn = build_ffn(
        "lookup",
        hidden_size=d,
        num_tables=num_tables,
        table_size=1 << tau,
        projection="dense" if dense else "bh4",
        block_size=4,
        alpha=alpha,
        num_probes=num_probes,
    ).double()
    torch.nn.init.normal_(ffn.projection_bias)
    x = torch.randn(5, d, dtype=torch.float64)
    with torch.no_grad():
        if dense:
            z = x @ ffn.projection.T
        else:
            mixed = alpha * bh4_transcription(x, ffn.projection)
            size = mixed.shape[1] // ffn.copies
            padded = torch.zeros(5, size, dtype=torch.float64)
            padded[:, :d] = x
            z = (mixed + (1 - alpha) * padded.repeat(1, ffn.copies))[:, : num_tables * tau]
        z = (z + ffn.projection_bias).view(5, num_tables, tau)
        codes, scores = hash_transcription(z, num_probes)
        expected = gather_transcription(ffn.table, codes, scores) + ffn.bias
    assert torch.allclose(ffn(x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("projection", ["bh4", "dense"])
def test_initialisation(projection):
    def z(init):
        ffn = build_ffn("lookup", hidden_size=256, projection=projection, init=init, num_tables=64, table_size=16)
        assert ffn.table.std().item() == pytest.approx(0.02, rel=0.02)
        assert ffn.bias.std().item() == pytest.approx(0.001, rel=0.2)
        x = torch.randn(400, 256)
        return x, ffn.hash_inputs(x).flatten(1)

    x, isometric = z("isometric")
    assert isometric.std().item() == pytest.approx((0.49 + 0.09) ** 0.5 if projection == "bh4" else 1, rel=0.15)
    if projection == "bh4":
        # the authors' start: the hash is nearly the sign of the input coordinates
        x, paper = z("paper")
        assert ((paper > 0) == (x > 0)).float().mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table_size": 100}, "table_size must be a power of two from 2"),
        ({"table_size": 1}, "table_size must be a power of two from 2"),
        ({"block_size": 24}, "block_size 24 does not divide 128"),
        ({"block_size": 256}, "hidden size of at least"),
        ({"num_probes": 0}, "num_probes"),
        ({"table_size": 4, "num_probes": 5}, "num_probes must be from 1 to table_size"),
        ({"num_tables": 0}, "num_tables"),
        ({"num_tables": "8"}, "num_tables must be a whole number"),
        ({"num_tables": True}, "num_tables must be a whole number"),
        ({"alpha": 1.5}, "alpha"),
        ({"projection": "bh5"}, "unknown ffn 'lookup': projection 'bh5': did you mean 'bh4'"),
        ({"init": "xavier"}, "unknown ffn 'lookup': init 'xavier'"),
    ],
)
def test_refused_before_anything_is_built(options, message):
    with pytest.raises(UserError, match=message) as error:
        build_ffn("lookup", hidden_size=128, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hidden_size", [128, 256, 512, 768, 1024])
def test_default_is_at_least_six_times_cheaper_than_gemm(hidden_size):
    lookup = build_ffn("lookup", hidden_size=hidden_size).cost()
    assert build_ffn("gemm", hidden_size=hidden_size).cost().flops >= 6 * lookup.flops


def test_large_table():
    ffn = build_ffn("lookup", hidden_size=8, num_tables=2, table_size=65536, num_probes=3)
    ffn(torch.randn(4, 8)).sum().backward()
    assert ffn.table.grad.abs().sum() > 0


def test_training_keeps_little_for_backward():
    """A few times the input at the paper's size; autograd alone would keep every factor, every |z| and every sign."""
    M, d = 512, 512
    ffn = build_ffn("lookup", hidden_size=d, num_tables=128, num_probes=2, block_size=32)
    own = {parameter.untyped_storage().data_ptr() for parameter in ffn.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = ffn(torch.randn(M, d, requires_grad=True))
    folded_weights = 4 * ffn.projection.numel()
    # x [M, d]; z [M, 2d]; codes, rows, weights, scores [M, d/2] each, once more as sorted or cast
    assert 0 < sum(kept.values()) - folded_weights < 7 * 4 * M * d
    y.sum().backward()


def test_statistics_count_the_rows_read():
    ffn = build_ffn("lookup", hidden_size=16, num_tables=3, table_size=8, num_probes=2)
    x = torch.randn(50, 16)
    ffn.eval()(x)
    assert ffn.statistics() == {}
    ffn.collect_statistics(True)
    ffn(x[:20])
    ffn(x[20:])
    ffn.train()(x)  # training does not count
    ffn.collect_statistics(False)
    found = ffn.statistics()
    codes = hash_transcription(ffn.hash_inputs(x), 2)[0]
    entropies, addressed = [], 0
    for k in range(3):
        share = torch.bincount(codes[:, k].flatten(), minlength=8) / 100
        entropies.append(-(share[share > 0] * share[share > 0].log2()).sum().item())
        addressed += (share > 0).sum().item()
    assert found["code_entropy_bits"] == pytest.approx(sum(entropies) / 3, rel=1e-5)
    assert found["rows_addressed"] == pytest.approx(addressed / 24)
    ffn.collect_statistics(True)
    assert ffn.statistics() == {}


@pytest.mark.parametrize("num_probes", [1, 3])
def test_kept_normaliser_gives_more_weight(num_probes):
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_probes": num_probes}
    a, b = (build_ffn("lookup", normaliser=normaliser, **options) for normaliser in ("all", "kept"))
    b.load_state_dict(a.state_dict())
    x = torch.randn(9, 32)
    assert ((b(x) - b.bias).norm(dim=-1) > (a(x) - a.bias).norm(dim=-1)).all()
    # evaluation has no kernel for it and must compute the same
    assert torch.allclose(b.eval()(x), b.train()(x), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_share_of_the_gradient_reaches_the_input(share):
    options = {"hidden_size": 32, "num_tables": 4}
    whole, part = (build_ffn("lookup", input_gradient=factor, **options) for factor in (1.0, share))
    part.load_state_dict(whole.state_dict())
    x = torch.randn(2, 9, 32)
    gradients = []
    for ffn in (whole, part):
        leaf = x.clone().requires_grad_()
        y = ffn(leaf)
        y.square().sum().backward()
        gradients.append((leaf.grad, y, *(parameter.grad for parameter in ffn.parameters())))
    (of_whole, *others), (of_part, *same) = gradients
    assert of_whole.abs().max() > 0
    assert torch.allclose(of_part, share * of_whole)
    assert all(torch.equal(a, b) for a, b in zip(same, others, strict=True))
