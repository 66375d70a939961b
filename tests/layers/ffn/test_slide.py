"""SLIDE against loops over tokens and tables; when tables are rebuilt; what is measured and what it costs."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lookupffn import UserError, build_ffn
from lookupffn.models import LookupRobertaConfig, LookupRobertaForMaskedLM


def slide(hidden_size=24, seed=1, **options):
    torch.manual_seed(seed)
    ffn = build_ffn("slide", hidden_size=hidden_size, **{"bits": 4, "num_tables": 3} | options)
    torch.nn.init.normal_(ffn.intermediate.bias)
    torch.nn.init.normal_(ffn.output.bias)
    return ffn


def buckets_by_hand(ffn, v):
    """For each row the set of (table, code) it falls into."""
    o = ffn.options
    signs = ffn.projections(v.detach()) > 0
    return [{(t, tuple(row[t * o.bits : (t + 1) * o.bits].tolist())) for t in range(o.num_tables)} for row in signs]


def retrieved_by_hand(ffn, x):
    neurons = buckets_by_hand(ffn, ffn.intermediate.weight)
    return [{n for n, own in enumerate(neurons) if own & mine} for mine in buckets_by_hand(ffn, x)]


def output_by_hand(ffn, x):
    """Loops over passes, tokens and neurons."""
    retrieved, P, rows = retrieved_by_hand(ffn, x), ffn.options.tokens_per_pass, []
    for token in range(len(x)):
        start = token // P * P
        y = ffn.output.bias.clone()
        for n in set.union(*retrieved[start : start + P]):
            inner = ffn.intermediate.weight[n] @ x[token] + ffn.intermediate.bias[n]
            y = y + F.gelu(inner) * ffn.output.weight[:, n]
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("tokens_per_pass", [1, 3, 50])
@pytest.mark.parametrize(("neurons", "bits", "tables"), [(30, 4, 3), (64, 2, 1), (7, 1, 5), (9, 12, 2)])
def test_matches_loops(tokens_per_pass, neurons, bits, tables):
    ffn = slide(intermediate_size=neurons, bits=bits, num_tables=tables, tokens_per_pass=tokens_per_pass).double()
    x = torch.randn(10, 24, dtype=torch.float64)
    expected = output_by_hand(ffn, x)
    assert torch.allclose(ffn(x), expected, atol=1e-12)
    assert torch.allclose(ffn.eval()(x), expected, atol=1e-12)


def test_gradient_is_that_of_the_retrieved_neurons():
    ffn = slide().double()
    x = torch.randn(5, 24, dtype=torch.float64, requires_grad=True)
    inputs = [x, *ffn.parameters()]
    got = torch.autograd.grad(ffn(x).square().sum(), inputs)
    expected = torch.autograd.grad(output_by_hand(ffn, x).square().sum(), inputs)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(got, expected, strict=True))


def test_a_token_that_retrieves_nothing_gets_the_bias():
    ffn = slide(intermediate_size=2, bits=12, num_tables=1)
    x = torch.randn(4, 24, requires_grad=True)
    y = ffn(x)
    assert not any(retrieved_by_hand(ffn, x))
    assert torch.equal(y, ffn.output.bias.expand(4, -1))
    y.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in [x, *ffn.parameters()])
    assert ffn.neurons_per_token == 0 and ffn.cost().flops_by_part["neurons"] == 0


def test_projections_are_signs_of_a_third_of_the_coordinates():
    ffn = slide(hidden_size=96)
    signs = ffn.projections(torch.eye(96))
    assert set(signs.unique().tolist()) == {-1, 0, 1}
    assert ((signs != 0).sum(0) == 32).all()


@pytest.mark.parametrize(
    ("every", "growth", "due"), [(1, 1.0, range(24)), (5, 1.0, range(0, 24, 5)), (3, 2.0, [0, 3, 9, 21])]
)
def test_rebuilding_schedule(every, growth, due):
    ffn = slide(rebuild_every=every, rebuild_growth=growth)
    x, rebuilt = torch.randn(4, 24), []
    for forward in range(24):
        torch.nn.init.normal_(ffn.intermediate.weight)
        before = ffn.codes.clone()
        ffn(x)
        if not torch.equal(before, ffn.codes):
            rebuilt.append(forward)
    assert rebuilt == list(due)
    assert (ffn.forwards, ffn.rebuilds) == (24, len(rebuilt))


def test_training_uses_the_tables_as_built_and_evaluation_those_of_the_current_weights():
    ffn = slide(rebuild_every=100)
    x = torch.randn(6, 24)
    ffn(x)
    built = ffn.codes.clone()
    torch.nn.init.normal_(ffn.intermediate.weight)
    with torch.no_grad():
        stale, fresh = ffn(x), ffn.eval()(x)
    assert torch.allclose(fresh, output_by_hand(ffn, x), atol=1e-6) and not torch.allclose(fresh, stale)
    assert torch.equal(ffn.codes, built) and torch.equal(ffn.train()(x), stale)


def train_steps(ffn, steps, validate=False):
    optimizer = torch.optim.SGD(ffn.parameters(), lr=0.1)
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(8, 24)
        optimizer.zero_grad()
        loss = ffn(x).square().mean()
        sum(ffn.auxiliary_losses().values(), loss).backward()
        optimizer.step()
        if validate:
            ffn.eval().collect_statistics(True)
            ffn(torch.randn(5, 24))
            ffn.collect_statistics(False)
            ffn.train()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slide", {"rebuild_every": 3, "rebuild_growth": 1.5}),
        ("mongoose", {"drift_threshold": 0.002, "check_every": 2}),
    ],
)
def test_resumed_training_is_the_uninterrupted_one_whether_or_not_it_was_validated(name, options):
    def build(seed):
        torch.manual_seed(seed)
        return build_ffn(name, hidden_size=24, bits=4, num_tables=3, **options)

    whole, broken, validated = (build(1) for _ in range(3))
    train_steps(whole, range(9))
    assert 1 < whole.rebuilds < 9
    train_steps(broken, range(4))
    resumed = build(9)
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    train_steps(resumed, range(4, 9))
    train_steps(validated, range(9), validate=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
        assert key == "neurons_per_token" or torch.equal(value, validated.state_dict()[key]), key


def test_measured_neurons_and_cost():
    ffn = slide(hidden_size=24, intermediate_size=40)
    adds = (8 * 4) * 3  # a third of 24 coordinates, 4 bits, 3 tables
    expected = 40 * (1 - (1 - 2**-4) ** 3)
    first = ffn.cost()
    assert first.flops_by_part == {"hash": adds, "neurons": pytest.approx(4 * 24 * expected)}
    assert first.parameters_touched == pytest.approx(expected * (2 * 24 + 1) + 24)

    x = torch.randn(50, 24)
    in_training = sum(map(len, retrieved_by_hand(ffn, x))) / 50
    ffn(x)
    assert ffn.cost().flops_by_part["neurons"] == pytest.approx(4 * 24 * in_training)

    ffn.eval().collect_statistics(True)
    assert ffn.statistics() == {}
    batches = [torch.randn(size, 24) for size in (30, 7)]
    for batch in batches:
        ffn(batch)
    sets = retrieved_by_hand(ffn, torch.cat(batches))
    average = sum(map(len, sets)) / 37
    assert ffn.statistics() == pytest.approx({"neurons_per_token": average, "neurons_used": len(set.union(*sets)) / 40})
    ffn.collect_statistics(False)
    assert ffn.cost().flops_by_part["neurons"] == pytest.approx(4 * 24 * average)
    ffn(x)
    other = slide(seed=4, hidden_size=24, intermediate_size=40)
    other.load_state_dict(ffn.state_dict())
    assert other.cost() == ffn.cost()
    assert ffn.cost().flops == pytest.approx(adds + 4 * 24 * average)


def test_a_pass_costs_the_union():
    ffn = slide(intermediate_size=40, tokens_per_pass=5)
    assert ffn.cost().flops_by_part["neurons"] == pytest.approx(4 * 24 * 40 * (1 - (1 - 2**-4) ** 15))
    x = torch.randn(10, 24)
    retrieved = retrieved_by_hand(ffn, x)
    ffn(x)
    unions = [len(set.union(*retrieved[start : start + 5])) for start in (0, 5)]
    assert ffn.neurons_per_token.item() == pytest.approx(sum(unions) / 2)


def test_codes_do_not_depend_on_the_precision():
    ffn = slide()
    x = torch.randn(20, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ffn.retrieve(x)
    assert torch.equal(half, ffn.retrieve(x))


def test_model_round_trip(tmp_path):
    options = {"name": "slide", "bits": 3, "num_tables": 4, "rebuild_every": 10}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 50}
    config = LookupRobertaConfig(vocab_size=90, max_position_embeddings=40, ffn=options, **sizes)
    tokens = torch.randint(5, 90, (2, 16))
    saved = LookupRobertaForMaskedLM(config).train()
    saved(tokens)
    for ffn in saved.feed_forwards():
        torch.nn.init.normal_(ffn.intermediate.weight, std=0.1)  # the tables in the file are of older weights
    saved.save_pretrained(tmp_path)
    torch.manual_seed(3)
    loaded = LookupRobertaForMaskedLM.from_pretrained(tmp_path)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    assert torch.equal(saved.eval()(tokens).logits, loaded(tokens).logits)
    assert loaded.ffn_cost() == saved.ffn_cost()


@pytest.mark.slow
def test_compiles_to_one_graph():
    ffn, compiled = slide(), slide()
    compiled.compile(backend="aot_eager", fullgraph=True)
    x = torch.randn(6, 24)
    for _ in range(2):
        assert torch.allclose(compiled(x), ffn(x), atol=1e-6)
    assert torch.equal(compiled.codes, ffn.codes) and compiled.forwards == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intermediate_size": 0}, "intermediate_size must be a whole number of at least 1"),
        ({"bits": 0}, "bits must be a whole number from 1 to 12"),
        ({"bits": 13}, "bits must be a whole number from 1 to 12"),
        ({"num_tables": 0}, "num_tables must be a whole number of at least 1"),
        ({"tokens_per_pass": 0}, "tokens_per_pass must be a whole number of at least 1"),
        ({"rebuild_every": 0}, "rebuild_every must be a whole number of at least 1"),
        ({"rebuild_growth": 0.5}, "rebuild_growth must be a number of at least 1"),
        ({"rebuild_growth": "x"}, "rebuild_growth must be a number"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(UserError, match=message):
        build_ffn("slide", hidden_size=32, **options)
