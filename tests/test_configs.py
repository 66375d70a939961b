"""Every file under configs/ composes and says something that can be run."""

from dataclasses import MISSING, fields

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from omegaconf import OmegaConf
from transformers import RobertaConfig

from lookupffn.cli.choices import CONFIG_DIR, race_members
from lookupffn.cli.command_line import composing
from lookupffn.config.data import SOURCES
from lookupffn.config.race import without_race
from lookupffn.config.run import RunConfig, read_run
from lookupffn.config.sections import (
    SECTIONS,
    TOKENIZERS,
    TRACKERS,
    EvaluateSettings,
    ModelSettings,
    RunSettings,
)
from lookupffn.layers import build_ffn, ffn_class, ffn_names
from lookupffn.models import build_model_config
from lookupffn.training.tracking import check_tracker
from tests.training.tiny import compose

GROUPS = sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]


def resolved(name: str, *overrides: str) -> dict:
    cfg = without_race(compose(name, *overrides))
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def read(config: dict) -> RunConfig:
    """Without what is the command's, not the run's."""
    of_commands = {"checkpoint", "hardware", "hardware_file"}
    return read_run({name: value for name, value in config.items() if name not in of_commands})


def check(config: dict) -> None:
    if config.get("task", {}).get("name") == "glue":  # each of whose runs is another task
        config = {**config, "task": {**config["task"], "name": "cola"}}
    run = read(config)
    check_tracker(run.tracker)
    build_model_config(run.model, run.ffn, run.transformers)
    assert run.data is None or run.data.sequence_length == run.model.sequence_length


def test_groups():
    expected = {"ffn", "model", "data", "tokenizer", "optimizer", "training", "tracker", "experiment", "task"}
    assert expected <= set(GROUPS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_composes(group: str, choice: str):
    if group == "hardware":  # another entry point's
        assert resolved("project_hardware", f"hardware={choice}")["hardware"]["kind"]
        return
    more = ["model=small"] if choice == "lookup_paper" else []
    command = "finetune" if group == "task" or choice == "finetune" else "train"
    config = resolved(command, f"{group}={choice}", *more)
    check(config)
    if group != "experiment":
        assert set(config[group]) - {"name"} or choice == "none"


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "data"])
def test_every_corpus_composes_for_evaluation(choice: str):
    assert resolved("evaluate", f"data={choice}", "model.sequence_length=64")["data"]["sequence_length"] == 64


@pytest.mark.parametrize("ffn", ["gemm", "lookup"])
@pytest.mark.parametrize("model", ["tiny", "mini", "small", "base"])
def test_every_model_with_every_default_ffn(ffn: str, model: str):
    check(resolved("train", f"ffn={ffn}", f"model={model}"))


def test_the_papers_models_differ_in_their_feed_forward_alone():
    configs = {name: resolved("train", f"experiment=paper_small_512_{name}") for name in ("bh4", "dense", "gemm")}
    options = {name: config.pop("ffn") for name, config in configs.items()}
    assert configs["bh4"] == configs["dense"] == configs["gemm"]
    assert options["dense"] == {**options["bh4"], "projection": "dense"}
    built = {}
    for name, ffn in options.items():
        ffn = {key: value for key, value in ffn.items() if value is not None}
        with torch.device("meta"):
            built[name] = build_ffn(ffn.pop("name"), hidden_size=configs[name]["model"]["hidden_size"], **ffn)
    d, tables, bits = 512, 128, 8
    neurons, sums, biases = 4 * d, tables * d, tables * bits + d
    table = tables * 2**bits * d
    # two copies of four factors of 8 blocks of 64 x 64 make 128 x 8 bits of 512 numbers
    blocks = 2 * 4 * 8 * 64 * 64
    assert {name: sum(p.numel() for p in ffn.parameters()) for name, ffn in built.items()} == {
        "gemm": 2 * d * neurons + neurons + d,
        "bh4": blocks + biases + table,
        "dense": d * tables * bits + biases + table,
    }
    flops = {name: ffn.cost().flops_by_part for name, ffn in built.items()}
    assert flops["bh4"]["gather"] == flops["dense"]["gather"] == 2 * sums
    assert flops["dense"]["projection"] == 2 * d * tables * bits
    assert 2 * blocks <= flops["bh4"]["projection"] < 1.01 * 2 * blocks
    assert built["gemm"].cost().flops == 2 * 2 * d * neurons


def test_the_paper_trains_and_starts_as_roberta():
    """What RoBERTa's own defaults in transformers say of the model, and what follows from the numbers of the run."""
    config = resolved("train", "experiment=paper_small_512_gemm")
    theirs = RobertaConfig()
    run = read(config)
    ours = build_model_config(run.model, run.ffn, run.transformers)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_act", "initializer_range"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.intermediate_size == 4 * ours.hidden_size and ours.hidden_size == 64 * ours.num_attention_heads
    training = config["training"]
    assert training["batch_size"] * training["max_steps"] * config["data"]["sequence_length"] == 32_768_000_000


def dataclass_of(group: str, name: str) -> type:
    kinds = {"ffn": {ffn: ffn_class(ffn).Options for ffn in ffn_names()}, "data": SOURCES, "tokenizer": TOKENIZERS,
             "tracker": TRACKERS}  # fmt: skip
    return kinds[group][name] if group in kinds else SECTIONS[group]


# files whose values are the defaults; those of model are one size among others
DEFAULTS = [
    ("training", "default"), ("optimizer", "adamw"),
    *((group, choice) for group, choice in CHOICES if group in ("ffn", "data", "tokenizer", "tracker")
      and choice not in ("lookup_paper",)),
]  # fmt: skip


@pytest.mark.parametrize(("group", "choice"), DEFAULTS)
def test_a_file_names_every_option_with_its_default(group: str, choice: str):
    """A value that stands in Python and in YAML is one value."""
    values = yaml.safe_load((CONFIG_DIR / group / f"{choice}.yaml").read_text())
    values.pop("race", None)
    cls = dataclass_of(group, values.get("name", choice))
    names = {field.name for field in fields(cls)}
    if group != "training":  # a budget that a file leaves out is none
        assert set(values) - {"name"} == names - {"name"}
    for field in fields(cls):
        value = values.get(field.name)
        if field.default is not MISSING and field.name != "name" and not str(value).startswith("${"):
            assert value == field.default, field.name


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "model"])
def test_a_model_names_every_option(choice: str):
    assert set(resolved("train", f"model={choice}")["model"]) == {field.name for field in fields(ModelSettings)}


def test_settings_outside_of_sections_have_their_default():
    for name, cls in (("train", RunSettings), ("evaluate", EvaluateSettings)):
        values = yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text())
        for field in fields(cls):
            assert field.default is MISSING or values[field.name] == field.default
    assert set(yaml.safe_load((CONFIG_DIR / "train.yaml").read_text())["evaluation"]) == {
        field.name for field in fields(SECTIONS["evaluation"])
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "mini", "small"])
def test_races_hold_every_feed_forward_most_at_two_costs(size: str):
    with composing():
        cfg = hydra_compose("train", [f"experiment=race_{size}"], return_hydra_config=True)
        assert cfg.hydra.sweeper.params.seed == "0,1,2"
        members = cfg.hydra.sweeper.params.ffn.split(",")
        assert members == race_members() and len(set(members)) == len(members) >= 27
        configs = {name: hydra_compose("train", [f"experiment=race_{size}", f"ffn={name}"]) for name in members}
    costs: dict[str, dict[str, float]] = {}
    for member, cfg in configs.items():
        config = OmegaConf.to_container(without_race(cfg), resolve=True)
        check(config)
        ffn = dict(config["ffn"])
        name = ffn.pop("name")
        if name in ("slide", "mongoose"):  # their cost is measured, with real tensors
            flops = ffn["num_tables"]
        else:
            with torch.device("meta"):
                flops = build_ffn(name, hidden_size=config["model"]["hidden_size"], **ffn).cost().flops
        costs.setdefault(name, {})[member.removeprefix("race/")] = flops
    assert set(costs) == set(ffn_names())
    assert all(len(set(points.values())) == len(points) >= 2 for name, points in costs.items() if name != "none")
    lookup = costs["lookup"]["lookup"]
    for name in ("fff", "product_key", "shuffle", "switch", "low_rank"):
        assert 0.8 < costs[name][name] / lookup < 1.3, name
        assert 1.6 < costs[name][f"{name}_double"] / lookup < 2.5, name


@pytest.mark.slow
def test_race_members_at_tiny_are_those_of_the_published_race():
    """Run folders are named by a hash of the config, so an option that moves by one is another run."""
    expected = {
        "fff": (8, 9), "fff_double": (7, 20), "gemm_half": (256,), "lookup_half": (16,), "lookup_double": (64,),
        "lookup_quadruple": (128,), "low_rank_double": (160,), "product_key": (2, 90, 24),
        "product_key_double": (4, 90, 24), "shuffle": (8, 640), "shuffle_double": (4, 640), "switch": (32, 64),
        "switch_double": (32, 128), "yoso_expectation": (80, "expectation"),
    }  # fmt: skip
    with composing():
        for name, values in expected.items():
            ffn = without_race(hydra_compose("train", [f"ffn=race/{name}"])).ffn
            assert set(values) <= set(ffn.values()), name


def test_experiment_yields_to_the_command_line():
    config = resolved("train", "experiment=paper_small_512_bh4", "ffn.num_tables=64", "training.precision=bf16")
    assert (config["ffn"]["num_tables"], config["training"]["precision"]) == (64, "bf16")


def test_no_config_holds_code_or_machine_paths():
    for path in CONFIG_DIR.rglob("*.yaml"):
        text = path.read_text()
        assert "_target_" not in text and "/home" not in text and "/tmp" not in text, path
