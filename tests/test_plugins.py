"""A feed-forward of another package is found like our own."""

from pathlib import Path

import pytest
import torch

from lookupffn import LookupRobertaConfig, UserError, build_ffn
from lookupffn.cli.choices import choices, race_members
from lookupffn.cli.command_line import compose, composing, read_command_line
from lookupffn.config.race import without_race
from lookupffn.layers import ffn_names

MODULE = """
from dataclasses import dataclass, replace
import torch
from torch import nn
from lookupffn import cost
from lookupffn.config.schema import option
from lookupffn.layers.base import FeedForward, Options


@dataclass(frozen=True)
class BilinearOptions(Options):
    intermediate_size: int | None = option(None, at_least=1)

    def resolve(self, hidden_size):
        return replace(self, intermediate_size=self.intermediate_size or 2 * hidden_size)


class Bilinear(FeedForward):
    name = "bilinear"
    Options = BilinearOptions

    def __init__(self, hidden_size, out_features, options):
        super().__init__(hidden_size, out_features, options)
        self.one = nn.Linear(hidden_size, options.intermediate_size)
        self.other = nn.Linear(hidden_size, options.intermediate_size)
        self.output = nn.Linear(options.intermediate_size, out_features)

    def forward(self, x):
        return self.output(self.one(x) * self.other(x))

    def cost(self):
        return cost.Cost()

    def reset_parameters(self, initializer_range=0.02):
        pass
"""
YAML = """# A product of two linear maps.
name: bilinear
intermediate_size: null
race:
  bilinear: {}
  bilinear_half: {intermediate_size: "${hidden:1}"}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a feed-forward, and another whose entry point names nothing."""
    (tmp_path / "bilinear_ffn" / "configs" / "ffn").mkdir(parents=True)
    # to look for choices must not import it
    (tmp_path / "bilinear_ffn" / "__init__.py").write_text("import sys; sys.modules['bilinear_was_imported'] = sys\n")
    (tmp_path / "bilinear_ffn" / "layer.py").write_text(MODULE)
    (tmp_path / "bilinear_ffn" / "configs" / "ffn" / "bilinear.yaml").write_text(YAML)
    info = tmp_path / "bilinear_ffn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bilinear-ffn\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lookupffn.feed_forwards]\nbilinear = bilinear_ffn.layer:Bilinear\nbroken = bilinear_ffn.layer:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "bilinear_was_imported", raising=False)
    return tmp_path


def test_found_like_our_own(package: Path):
    import sys

    read_command_line("train", ["ffn=bilinear", "ffn.intermediate_size=3"])
    with pytest.raises(UserError, match="did you mean 'bilinear'"):
        read_command_line("train", ["ffn=bilinaer"])
    with pytest.raises(UserError, match="option of ffn 'bilinear' 'intermediat_size'"):
        read_command_line("train", ["ffn=bilinear", "ffn.intermediat_size=3"])
    assert "bilinear" in choices("ffn") and {"bilinear", "race/bilinear_half"} <= set(race_members())
    assert "bilinear_was_imported" not in sys.modules
    with composing():
        half = without_race(compose("train", ["ffn=race/bilinear_half", "model=mini"])).ffn
        assert dict(half) == {"name": "bilinear", "intermediate_size": 256}
        members = compose("train", ["experiment=race_tiny"], with_hydra=True).hydra.sweeper.params.ffn
        assert "race/bilinear_half" in members.split(",")

    assert "bilinear" in ffn_names()
    assert build_ffn("bilinear", hidden_size=8)(torch.randn(3, 8)).shape == (3, 8)
    with pytest.raises(UserError, match="ffn 'bilinear': intermediate_size must be a whole number of at least 1"):
        build_ffn("bilinear", hidden_size=8, intermediate_size=0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 99}
    assert LookupRobertaConfig(**sizes, ffn={"name": "bilinear"}).ffn["intermediate_size"] == 64


def test_an_entry_point_that_names_nothing(package: Path):
    with pytest.raises(UserError, match=r"ffn 'broken' cannot be imported from bilinear_ffn\.layer:Nothing") as caught:
        build_ffn("broken", hidden_size=8)
    assert "\n" not in str(caught.value)
