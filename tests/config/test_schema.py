"""One validator for everything that can be set."""

from dataclasses import dataclass

import pytest

from lookupffn import UserError, build_ffn
from lookupffn.config.schema import names_where, option, read
from lookupffn.config.sections import SMALLEST_VOCABULARY, TrainingSettings, changeable_settings
from lookupffn.data.tokenizer import SPECIAL_TOKENS
from lookupffn.layers import registry
from lookupffn.layers.base import Options
from lookupffn.layers.ffn.gemm import GemmFFN, GemmOptions
from lookupffn.models import LookupRobertaConfig


@dataclass(frozen=True, kw_only=True)
class Section:
    count: int = option(1, at_least=1, at_most=9, shared=True)
    rate: float | None = option(None, above=0, below=1, null="no rate", changeable=True)
    size: int = option(8, at_least=2, at_most=64, power_of_two=True)
    kind: str = option("one", choices=("one", "other"))
    pair: tuple[float, float] = option((0.0, 0.5), at_least=0, below=1)
    names: list[str] | str | None = None
    wise: bool = option(False)
    needed: int | None = option(at_least=0)

    def check(self) -> None:
        if self.count == 7:
            raise UserError("seven is taken")


def section(**values):
    return read(Section, {"needed": None, **values}, "part.", "option of part")


def test_values_become_the_declared_types():
    found = section(count=2.0, rate=1e-3, size=16, pair=[0, 0.25], names=["a"], wise=True, needed=1e3)
    assert (found.count, found.needed) == (2, 1000) and type(found.count) is int and type(found.needed) is int
    assert type(found.pair[0]) is float and found.pair == (0.0, 0.25)
    assert section(rate=None).rate is None and section().size == 8
    assert section(needed=2**80).needed == 2**80


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "part.count must be a whole number from 1 to 9, not 0"),
        ({"count": True}, "part.count must be a whole number from 1 to 9, not True"),
        ({"count": 1.5}, "part.count must be a whole number from 1 to 9, not 1.5"),
        ({"count": "2"}, "part.count must be a whole number from 1 to 9, not '2'"),
        ({"count": None}, "part.count must be a whole number from 1 to 9, not None"),
        ({"count": 7}, "seven is taken"),
        ({"rate": 1}, "part.rate must be a number above 0 and below 1 or null (no rate), not 1"),
        ({"rate": float("nan")}, "part.rate must be a number above 0 and below 1 or null (no rate), not nan"),
        ({"rate": 10**400}, "part.rate must be a number"),
        ({"size": 12}, "part.size must be a power of two from 2 to 64, not 12"),
        ({"size": 1}, "part.size must be a power of two from 2 to 64, not 1"),
        ({"kind": "othr"}, "unknown part.kind 'othr': did you mean 'other'? valid: one, other"),
        ({"kind": 3}, "part.kind must be one of one, other, not 3"),
        ({"pair": [0.5]}, "part.pair must be 2 numbers from 0 to below 1, not [0.5]"),
        ({"pair": [0.5, 1]}, "part.pair must be 2 numbers from 0 to below 1, not [0.5, 1]"),
        ({"names": [1]}, "part.names must be a list of text or text or null, not [1]"),
        ({"wise": 1}, "part.wise must be true or false, not 1"),
        ({"conut": 1}, "unknown option of part 'conut': did you mean 'count'?"),
    ],
)
def test_refused_in_one_line(values, message):
    with pytest.raises(UserError) as caught:
        section(**values)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_what_has_no_default_must_be_given():
    with pytest.raises(UserError, match=r"part\.needed is missing: give a whole number of at least 0 or null"):
        read(Section, {}, "part.", "option of part")


def test_flags():
    assert names_where(Section, "shared") == ["count"] and names_where(Section, "changeable") == ["rate"]
    assert {"training.max_steps", "evaluation.batch_size", "output_dir"} <= set(changeable_settings())
    assert not {"training.batch_size", "training.precision", "seed", "init_from"} & set(changeable_settings())


def test_a_run_that_goes_on_may_change_its_budget_and_what_computes_nothing():
    changing = {f"training.{name}" for name in names_where(TrainingSettings, "changeable")}
    assert changing == {name for name in changeable_settings() if name.startswith("training.")}


def test_the_smallest_vocabulary_has_room_for_one_merge():
    assert 256 + len(SPECIAL_TOKENS) + 1 == SMALLEST_VOCABULARY


def test_sharing_is_declared_and_not_a_matter_of_names(monkeypatch):
    """A feed-forward whose intermediate_size is its own keeps it in a model, whatever the model's is."""

    @dataclass(frozen=True)
    class OwnOptions(Options):
        intermediate_size: int | None = option(None, at_least=1)

        def resolve(self, hidden_size):
            return GemmOptions(intermediate_size=self.intermediate_size or 3 * hidden_size)

    class Own(GemmFFN):
        name = "own"
        Options = OwnOptions

    monkeypatch.setitem(registry._CLASSES, "own", Own)
    alone = build_ffn("own", hidden_size=32).options.intermediate_size
    assert alone == 96
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    assert LookupRobertaConfig(**sizes, ffn={"name": "own"}).ffn["intermediate_size"] == alone
    assert LookupRobertaConfig(**sizes, ffn={"name": "gemm"}).ffn["intermediate_size"] == 64
