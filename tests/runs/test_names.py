from lookupffn.runs.names import default_name, group_name, member_name
from tests.runs.test_run_folder import config

TABLES = {"name": "lookup", "num_tables": 32, "table_size": 256}


def test_members_are_named_by_what_differs():
    run = config(ffn=TABLES, seed=3)
    assert member_name(run, ["ffn.num_tables", "ffn.table_size", "seed"]) == "lookup-T32-S256-seed3"
    assert group_name(run, ["ffn.num_tables", "ffn.table_size", "seed"]) == "lookup-T32-S256"
    run["optimizer"]["lr"] = 0.004
    run["optimizer"]["schedule"] = "cosine"
    assert member_name(run, ["optimizer.lr", "optimizer.schedule"]) == "lookup-lr0.004-schedule_cosine-seed3"
    # what another feed-forward of the sweep has and this one does not
    assert member_name(run, ["ffn.name", "ffn.num_experts", "ffn.num_tables"]) == "lookup-T32-seed3"
    # a group's name stands for all that it sets
    assert member_name(run, ["model.name", "model.hidden_size", "model.num_hidden_layers"]) == "lookup-tiny-seed3"
    assert member_name(run, ["output_dir", "tracker.name", "seed"]) == "lookup-seed3"


def test_names_are_safe_and_of_bounded_length():
    run = config(ffn=TABLES)
    run["data"]["name"] = "../a b/c"
    assert "/" not in member_name(run, ["data.name"]) and " " not in member_name(run, ["data.name"])
    run["optimizer"]["schedule"] = "x" * 300
    assert member_name(run, ["optimizer.schedule"]) == default_name(run)
    assert member_name(run, []) == default_name(run)


def test_runs_that_differ_by_their_seed_share_a_group():
    assert group_name(config(seed=0)) == group_name(config(seed=1)) != group_name(config(ffn=TABLES))


def test_settings_that_were_added_later_do_not_strand_earlier_runs():
    before, after = config(), config()
    before["training"].pop("max_epochs")
    assert default_name(before) == default_name(after)
    after["training"]["max_epochs"] = 3.0
    assert default_name(before) != default_name(after)
