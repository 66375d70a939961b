"""Every file under configs/ composes and says something that can be run."""

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from lookupffn.cli.choices import CONFIG_DIR
from lookupffn.config.sections import evaluation_settings, optimizer_settings, training_settings
from lookupffn.data.labelled import task_settings
from lookupffn.layers import build_ffn, ffn_names, resolve_options
from lookupffn.training.tracking import check_tracker
from tests.training.tiny import compose

GROUPS = sorted(path.name for path in CONFIG_DIR.iterdir() if path.is_dir())
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]


def resolved(name: str, *overrides: str) -> dict:
    return OmegaConf.to_container(compose(name, *overrides), resolve=True, throw_on_missing=True)


def check(config: dict) -> None:
    training_settings(config["training"], world_size=1)
    optimizer_settings(config["optimizer"])
    evaluation_settings(config["evaluation"])
    check_tracker(config["tracker"])
    ffn = dict(config["ffn"])
    resolve_options(ffn.pop("name"), config["model"]["hidden_size"], ffn)
    if "task" in config:
        if config["task"]["name"] != "glue":  # each of whose runs is another task
            task_settings(config["task"])
    else:
        assert config["data"]["sequence_length"] == config["model"]["sequence_length"]
    assert config["model"]["sequence_length"] <= config["model"]["max_positions"]


def test_groups():
    expected = {"ffn", "model", "data", "tokenizer", "optimizer", "training", "tracker", "experiment", "task"}
    assert expected <= set(GROUPS)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_file_composes(group: str, choice: str):
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


@pytest.mark.parametrize("projection", ["bh4", "dense", "gemm"])
def test_paper_configuration(projection: str):
    config = resolved("train", f"experiment=paper_small_512_{projection}")
    model, optimizer, training = config["model"], config["optimizer"], config["training"]
    expected_ffn = {"num_tables": 128, "table_size": 256, "init": "paper", "num_probes": 1, "projection": projection}
    expected_ffn |= {"block_size": 64, "alpha": 0.7} if projection == "bh4" else {}
    ffn = {"name": "gemm"} if projection == "gemm" else {"name": "lookup", **expected_ffn}
    assert config["ffn"] | ffn == config["ffn"]
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_positions")
    assert [model[key] for key in (*sizes, "sequence_length")] == [4, 512, 8, 2048, 512, 512]
    assert model["hidden_dropout_prob"] == model["attention_probs_dropout_prob"] == 0.1
    assert model["layer_norm_eps"] == 1e-5
    assert (config["data"]["name"], config["data"]["mask_rate"]) == ("wikipedia", 0.15)
    assert config["tokenizer"] == {"name": "pretrained", "path": "roberta-base"}
    assert (optimizer["lr"], optimizer["betas"], optimizer["eps"]) == (1e-4, [0.9, 0.98], 1e-6)
    assert (optimizer["weight_decay"], optimizer["schedule"], optimizer["warmup_steps"]) == (0.01, "linear", 10_000)
    assert (training["batch_size"], training["max_steps"], training["precision"]) == (256, 250_000, "fp16")


@pytest.mark.parametrize("size", ["tiny", "mini", "small"])
def test_races_hold_every_feed_forward_most_at_two_costs(size: str):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = hydra_compose("train", [f"experiment=race_{size}"], return_hydra_config=True)
    assert cfg.hydra.sweeper.params.seed == "0,1,2"
    members = cfg.hydra.sweeper.params.ffn.split(",")
    files = {f"race_{size}/{path.stem}" for path in (CONFIG_DIR / "ffn" / f"race_{size}").glob("*.yaml")}
    assert files <= set(members)
    costs: dict[str, set[float]] = {}
    for member in members:
        config = resolved("train", f"experiment=race_{size}", f"ffn={member}")
        check(config)
        ffn = dict(config["ffn"])
        name = ffn.pop("name")
        if name not in ("slide", "mongoose"):  # their cost is measured, with real tensors
            with torch.device("meta"):
                flops = build_ffn(name, hidden_size=config["model"]["hidden_size"], **ffn).cost().flops
        else:
            flops = ffn["num_tables"]
        costs.setdefault(name, set()).add(flops)
    assert set(costs) == set(ffn_names())
    assert all(len(points) >= 2 for name, points in costs.items() if name != "none")


def test_experiment_yields_to_the_command_line():
    config = resolved("train", "experiment=paper_small_512_bh4", "ffn.num_tables=64", "training.precision=bf16")
    assert (config["ffn"]["num_tables"], config["training"]["precision"]) == (64, "bf16")


def test_no_config_holds_code_or_machine_paths():
    for path in CONFIG_DIR.rglob("*.yaml"):
        text = path.read_text()
        assert "_target_" not in text and "/home" not in text and "/tmp" not in text, path
