import pytest

from lookupffn.errors import UserError
from lookupffn.report.groups import comparable_groups, require_one_group, short_number
from lookupffn.report.runs import find_runs
from tests.report.synthetic import write_gemm, write_race, write_run


def groups_of(folder):
    return comparable_groups(find_runs([folder]).runs)


def test_one_race_is_one_group_of_variants(tmp_path):
    (group,), left_out = groups_of(write_race(tmp_path))
    assert not left_out
    assert group.name == "tiny-docstrings-6.14M-tokens"
    assert [(v.label, len(v.runs)) for v in group.variants] == [
        ("gemm", 3),
        ("lookup, num_tables 16", 3),
        ("lookup, num_tables 32", 3),
        ("none", 3),
    ]
    require_one_group([group])


DIFFERENT = [
    ({"data_fingerprint": "c" * 32}, "data_fingerprint (aaaaaaaa; cccccccc)"),
    ({"tokenizer_fingerprint": "c" * 32}, "tokenizer_fingerprint"),
    ({"masked_validation_tokens": 5}, "masked_validation_tokens (5; 37,280)"),
    ({"config": {"data": {"mask_rate": 0.3}}}, "mask_rate (0.15; 0.3)"),
    ({"config": {"data": {"sequence_length": 128}}}, "sequence_length (64; 128)"),
    ({"config": {"model": {"num_hidden_layers": 3}}}, "model.num_hidden_layers (2; 3)"),
    ({"config": {"model": {"position_init": "normal"}}}, "model.position_init"),
    ({"config": {"init_from": "/some/run"}}, "init_from"),
    ({"config": {"data": {"mask_rate": [0.15, 0.3]}}}, "mask_rate (0.15; 0.15/0.3)"),
    ({"steps": 3000}, "tokens (6,144,000; 12,288,000)"),
]


@pytest.mark.parametrize(("change", "told"), DIFFERENT)
def test_what_cannot_be_compared_is_split_or_refused(tmp_path, change, told):
    write_run(tmp_path / "one")
    write_run(tmp_path / "other", **change)
    groups, _ = groups_of(tmp_path)
    assert len(groups) == 2 and groups[0].name != groups[1].name
    with pytest.raises(UserError) as error:
        require_one_group(groups)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.001},
        {"options": {"num_tables": 3}},
        {"config": {"training": {"batch_size": 32}}},
        {"config": {"model": {"name": "mine"}}},
        {"seed": 7, "device_name": "another machine"},
        {"tokens": 6_144_000 + 2048},  # a last step rounded up
    ],
)
def test_what_is_compared_stays_together(tmp_path, change):
    write_run(tmp_path / "one")
    write_run(tmp_path / "other", **change)
    assert len(groups_of(tmp_path)[0]) == 1


def test_labels_show_only_what_tells_variants_of_a_feed_forward_apart(tmp_path):
    write_gemm(tmp_path / "g", lr=0.002)
    write_run(tmp_path / "a", lr=0.002, options={"num_tables": 8, "alpha": 0.7, "block_size": None})
    write_run(tmp_path / "b", lr=0.004, options={"num_tables": 8, "alpha": 0.7, "block_size": 4})
    labels = {v.label for v in groups_of(tmp_path)[0][0].variants}
    assert labels == {"gemm", "lookup, lr 0.002", "lookup, block_size 4, lr 0.004"}


def test_rates_of_what_a_feed_forward_does_not_have_make_no_variant(tmp_path):
    for seed, scale in enumerate((1.0, 2.5)):
        config = {"optimizer": {"tables_lr_scale": scale, "hash_lr_scale": scale}}
        write_gemm(tmp_path / f"g{seed}", seed=seed, config=config)
        write_run(tmp_path / f"l{seed}", seed=seed, config=config)
    labels = [v.label for v in groups_of(tmp_path)[0][0].variants]
    assert labels == [
        "gemm",
        "lookup, hash_lr_scale 1, tables_lr_scale 1",
        "lookup, hash_lr_scale 2.5, tables_lr_scale 2.5",
    ]


def test_settings_of_one_name_keep_their_section(tmp_path):
    for name, lr, own in (("a", 0.1, 1), ("b", 0.2, 1), ("c", 0.1, 2)):
        write_run(tmp_path / name, "other", lr=lr, options={"lr": own})
    assert "other, ffn.lr 2, optimizer.lr 0.1" in {v.label for v in groups_of(tmp_path)[0][0].variants}


def test_a_repeated_seed_counts_once(tmp_path):
    write_run(tmp_path / "a", loss=4.0)
    write_run(tmp_path / "b", loss=4.1)
    (group,), (repeat,) = groups_of(tmp_path)
    assert [run.path.name for run in group.runs] == ["a"]
    assert repeat.path.name == "b" and repeat.why == f"repeats seed 0 of {tmp_path / 'a'}"


def test_names_of_groups_are_apart_and_fit_for_a_folder(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"model": {"num_hidden_layers": 3}})
    write_run(tmp_path / "c", config={"init_from": "../../x"})
    write_run(tmp_path / "d", model="../up", steps=10, exit_step=None)
    names = [group.name for group in groups_of(tmp_path)[0]]
    assert len(set(names)) == 4
    assert "tiny-docstrings-6.14M-tokens-init_from-none-num_hidden_layers-3" in names
    assert not any("/" in name or name.startswith(".") for name in names)


def test_short_numbers():
    assert [short_number(n) for n in (12, 409_600, 8_003_584, 2.5e12)] == ["12", "410k", "8M", "2.5T"]
