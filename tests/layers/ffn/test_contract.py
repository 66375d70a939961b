"""What every registered feed-forward must do."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from lookupffn import UserError, build_ffn
from lookupffn.layers import ffn_class, ffn_names

CONFIGS = sorted((Path(__file__).parents[3] / "configs" / "ffn").glob("*.yaml"))
every_ffn = pytest.mark.parametrize("name", ffn_names())


def seeded(ffn, x):
    """A forward whose draws, where training makes any, are the same at every call."""
    torch.manual_seed(5)
    return ffn(x)


def options_in(path):
    """What a file of configs/ffn says of the feed-forward; not its members of the race."""
    values = yaml.safe_load(path.read_text())
    values.pop("race", None)
    return values


def test_every_ffn_has_a_config_and_every_config_builds():
    named = set()
    for path in CONFIGS:
        options = options_in(path)
        named.add(options["name"])
        build_ffn(hidden_size=128, **options)
    assert named == set(ffn_names())


@every_ffn
@pytest.mark.parametrize("hidden_size", [32, 48, 100])
def test_shape_type_and_gradients(name, hidden_size):
    ffn = build_ffn(name, hidden_size=hidden_size)
    x = torch.randn(2, 7, hidden_size, requires_grad=True)
    y = ffn(x)
    assert y.shape == x.shape and y.dtype == x.dtype
    # some parameters learn from an auxiliary loss alone
    sum(ffn.auxiliary_losses().values(), y.square().mean()).backward()
    assert torch.isfinite(x.grad).all()
    for parameter_name, parameter in ffn.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name


@every_ffn
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 48), (48, 16)])
def test_inputs_and_outputs_of_different_sizes(name, inputs, outputs):
    if ffn_class(name).square:
        with pytest.raises(UserError, match=f"out_features must be {inputs}"):
            build_ffn(name, hidden_size=inputs, out_features=outputs)
        return
    ffn = build_ffn(name, hidden_size=inputs, out_features=outputs)
    x = torch.randn(2, 7, inputs, requires_grad=True)
    y = ffn(x)
    assert y.shape == (2, 7, outputs)
    sum(ffn.auxiliary_losses().values(), y.square().mean()).backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in ffn.parameters())
    assert ffn.cost().parameters == sum(p.numel() for p in ffn.parameters())
    with torch.no_grad():
        quick = ffn.eval()(x)
    # no gradient, no training: another path, the same function
    assert quick.shape == y.shape and torch.allclose(quick, ffn(x), atol=1e-5)


def test_lookup_costs_its_own_outputs():
    """Its projection depends on the inputs alone, its gather on the outputs alone."""
    square, wide = (build_ffn("lookup", hidden_size=32, out_features=n).cost().flops_by_part for n in (32, 96))
    assert wide["gather"] == 3 * square["gather"]
    assert {k: v for k, v in wide.items() if k != "gather"} == {k: v for k, v in square.items() if k != "gather"}


@pytest.mark.parametrize("outputs", [0, 2.5, True])
def test_bad_out_features(outputs):
    with pytest.raises(UserError, match="out_features must be a positive integer"):
        build_ffn("gemm", hidden_size=32, out_features=outputs)


@every_ffn
def test_tokens_do_not_see_each_other_at_evaluation(name):
    ffn = build_ffn(name, hidden_size=32).eval()
    x = torch.randn(9, 32)
    together = ffn(x)
    assert torch.allclose(together, torch.cat([ffn(row[None]) for row in x]), atol=1e-6)


@every_ffn
def test_empty_and_non_contiguous_inputs(name):
    ffn = build_ffn(name, hidden_size=32).eval()
    assert ffn(torch.zeros(0, 32)).shape == (0, 32)
    x = torch.randn(32, 6).T
    assert torch.allclose(ffn(x), ffn(x.contiguous()), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_ffn
def test_a_gpu_gives_the_same(name):
    ffn, x = build_ffn(name, hidden_size=64).eval(), torch.randn(300, 64)
    there = copy.deepcopy(ffn).cuda()
    with torch.no_grad():
        expected, got = ffn(x), there(x.cuda()).cpu()
    # the code of a token near a hyperplane may be another there
    far = (got - expected).norm(dim=-1) > 1e-3 * expected.norm(dim=-1)
    assert got.isfinite().all() and far.sum() <= 3
    y = there.train()(x.cuda().requires_grad_())
    sum(there.auxiliary_losses().values(), y.square().mean()).backward()
    assert all(p.grad.is_cuda and p.grad.isfinite().all() for p in there.parameters())


@every_ffn
def test_same_seed_same_module_and_state_round_trip(name):
    def build():
        torch.manual_seed(1)
        return build_ffn(name, hidden_size=32)

    a, b = build(), build()
    x = torch.randn(4, 32)
    assert torch.equal(seeded(a, x), seeded(b, x))
    torch.manual_seed(2)
    c = build_ffn(name, hidden_size=32)
    c.load_state_dict(a.state_dict())
    assert torch.equal(seeded(a, x), seeded(c, x))


@every_ffn
def test_cost_counts_every_parameter(name):
    ffn = build_ffn(name, hidden_size=32)
    cost = ffn.cost()
    assert cost.parameters == sum(parameter.numel() for parameter in ffn.parameters())
    assert cost.flops == sum(cost.flops_by_part.values())
    assert 0 <= cost.parameters_touched <= cost.parameters
    # what costs nothing has nothing to compute with
    assert (cost.flops > 0) == (cost.parameters_touched > 0) == (cost.parameters > 0)
    assert cost.bytes == 4 * cost.parameters_touched


@every_ffn
def test_runs_under_autocast(name):
    ffn = build_ffn(name, hidden_size=32)
    x = torch.randn(64, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = seeded(ffn, x)
    y.float().sum().backward()
    # a code bit near its hyperplane may flip in half precision; most of the output must agree all the same
    assert (y.float() - seeded(ffn, x)).norm() <= 0.3 * seeded(ffn, x).norm()


@every_ffn
def test_unknown_option_names_the_nearest(name):
    options = [field.name for field in dataclasses.fields(ffn_class(name).Options)]
    for option in options[:1]:
        with pytest.raises(UserError, match=f"did you mean '{option}'"):
            build_ffn(name, hidden_size=32, **{option + "s": 1})
    with pytest.raises(UserError, match="unknown option"):
        build_ffn(name, hidden_size=32, warp_factor=1)


@every_ffn
@pytest.mark.parametrize("hidden_size", [0, -4, 2.5, "8", True])
def test_bad_hidden_size(name, hidden_size):
    with pytest.raises(UserError, match="hidden_size"):
        build_ffn(name, hidden_size=hidden_size)


def test_unknown_ffn_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'lookup'"):
        build_ffn("lokup", hidden_size=32)


@pytest.mark.slow
@every_ffn
def test_compiles(name):
    ffn, x = build_ffn(name, hidden_size=32).eval(), torch.randn(9, 32)
    expected = ffn(x)
    ffn.compile(backend="aot_eager")
    assert torch.allclose(ffn(x), expected, atol=1e-6)
    y = ffn.train()(x.requires_grad_())
    y.square().sum().backward()
    assert x.grad.isfinite().all()


@every_ffn
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_not_floating_point_is_refused(name, dtype, training):
    ffn = build_ffn(name, hidden_size=32).train(training)
    with pytest.raises((TypeError, ValueError, RuntimeError)), torch.set_grad_enabled(training):
        ffn(torch.ones(2, 7, 32, dtype=dtype))


@every_ffn
@pytest.mark.parametrize("training", [True, False])
def test_a_second_derivative_is_right_or_refused(name, training):
    """In a residual block, where what is cut out of the graph would leave a part of the sum."""
    ffn = build_ffn(name, hidden_size=32).double().train(training)
    x, v = torch.randn(2, 5, 32, dtype=torch.float64)

    def gradient(x, **how):
        x = x.clone().requires_grad_()
        return x, torch.autograd.grad((seeded(ffn, x) + x.square()).square().sum(), x, **how)[0]

    inputs, first = gradient(x, create_graph=True)
    try:
        (product,) = torch.autograd.grad((first * v).sum(), inputs)
    except RuntimeError as error:
        assert name in ("lookup", "fff", "product_key", "yoso") and "second backward" in str(error)
    else:
        difference = (gradient(x + 1e-5 * v)[1] - gradient(x - 1e-5 * v)[1]) / 2e-5
        assert (product - difference).norm() < 1e-4 * difference.norm()
