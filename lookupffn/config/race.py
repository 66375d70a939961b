"""Members of a race: variants that a feed-forward's YAML lists under ``race``.

    race:
      shuffle: {intermediate_size: "${hidden:5}"}
      shuffle_double: {groups: 4, intermediate_size: "${hidden:5}"}

Each is the YAML's feed-forward with other options; one without any, as in ``race: {gemm: {}}``, is the feed-forward as
it stands. ``${hidden:5}`` is 5 times the model's hidden size, ``${hidden:8,1/2}`` 8 times its square root, both rounded
down.
"""

from __future__ import annotations

from fractions import Fraction

from omegaconf import DictConfig, OmegaConf, open_dict

RACE = "race"


def _times_hidden(factor: object, power: object = 1, *, _root_: DictConfig) -> int:
    hidden = _root_.model.hidden_size
    exponent = Fraction(str(power))
    return int(Fraction(str(factor)) * (hidden if exponent == 1 else Fraction(hidden ** float(exponent))))


OmegaConf.register_new_resolver("hidden", _times_hidden, replace=True)


def without_race(cfg: DictConfig) -> DictConfig:
    """A copy of a composed config whose feed-forward is what will be built, and lists no variants."""
    cfg = cfg.copy()
    if OmegaConf.is_dict(cfg.get("ffn")):
        with open_dict(cfg):
            cfg.ffn.pop(RACE, None)
    return cfg
