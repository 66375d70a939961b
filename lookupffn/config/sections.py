"""The sections of a run's config, one dataclass each; configs/ holds their values.

The options of a feed-forward stand beside it in layers/ffn/, those of a corpus in data.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lookupffn.config.schema import names_where, option, read, rule_of
from lookupffn.errors import UserError, unknown_name

BUDGETS = ("max_epochs", "max_tokens", "max_flops", "max_minutes")
LARGEST_SEED = 2**63 - 1
SHORTEST_SEQUENCE = 8
SMALLEST_VOCABULARY = 256 + 5 + 1  # every byte, the special tokens, and one merge


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What stands outside of all sections in configs/train.yaml."""

    seed: int = option(at_least=0, at_most=LARGEST_SEED)
    output_dir: str | None = option(None, changeable=True)
    overwrite: bool = option(False, changeable=True)
    cache_dir: str | None = option(None, changeable=True)
    init_from: str | None = option(None)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What stands outside of all sections in configs/evaluate.yaml."""

    checkpoint: str | None = option(None)
    output: str | None = option(None)
    cache_dir: str | None = option(None)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The `training` section."""

    batch_size: int = option(at_least=1)
    max_steps: int | None = option(at_least=1, changeable=True)
    max_epochs: float | None = option(None, above=0, changeable=True, later=True)
    max_tokens: float | None = option(above=0, changeable=True)
    max_flops: float | None = option(above=0, changeable=True)
    max_minutes: float | None = option(above=0, changeable=True)
    gradient_accumulation_steps: int = option(at_least=1)
    micro_batches: int | None = option(at_least=1, null="as many as there are")
    precision: str = option(choices=("fp32", "bf16", "fp16"))
    compile: bool = option()
    log_every: int = option(at_least=1, changeable=True)
    validate_every: int = option(at_least=1, changeable=True)
    validate_tokens: int | None = option(at_least=1, changeable=True)
    checkpoint_every: int = option(at_least=1, changeable=True)
    keep_checkpoints: int = option(at_least=1, changeable=True)
    keep_best: bool = option(changeable=True)
    skip_nonfinite: int = option(at_least=0, changeable=True)
    num_workers: int = option(at_least=0, changeable=True)

    def check(self) -> None:
        """Compares the options with each other."""
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"training: {' and '.join(given)} are both set; a budget is stated in one of them")
        if not given and self.max_steps is None:
            raise UserError("training: no budget; set max_steps, max_epochs, max_tokens, max_flops or max_minutes")
        if self.micro_batches is not None and self.gradient_accumulation_steps != 1:
            raise UserError("training: micro_batches and gradient_accumulation_steps are both set; leave one out")
        self.check_processes(1)

    def check_processes(self, world_size: int) -> None:
        """Raises a UserError where a batch cannot be divided among so many processes."""
        fixed, parts = self.micro_batches, world_size * self.gradient_accumulation_steps
        if fixed is not None and (self.batch_size % fixed or fixed % world_size):
            raise UserError(
                f"training.micro_batches={fixed} must divide batch_size={self.batch_size} and be a multiple of the "
                f"{world_size} processes"
            )
        if self.batch_size % parts:
            raise UserError(
                f"training.batch_size={self.batch_size} is not divisible by {parts} "
                f"({world_size} processes x {self.gradient_accumulation_steps} accumulation steps)"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The `optimizer` section."""

    name: str = option("adamw", choices=("adamw",))
    lr: float = option(above=0)
    betas: tuple[float, float] = option(at_least=0, below=1)
    eps: float = option(above=0)
    weight_decay: float = option(at_least=0)
    schedule: str = option(choices=("linear", "cosine"))
    warmup_steps: int | None = option(at_least=0, null="warmup_ratio of the budget")
    warmup_ratio: float | None = option(at_least=0, below=1)
    tables_lr_scale: float = option(above=0)
    tables_weight_decay: float | None = option(at_least=0, null="weight_decay")
    hash_lr_scale: float = option(above=0)
    hash_weight_decay: float | None = option(at_least=0, null="weight_decay")
    max_grad_norm: float | None = option(above=0, null="no clipping")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The `evaluation` section."""

    batch_size: int = option(at_least=1, changeable=True)
    max_tokens: int | None = option(at_least=1, null="all")


@dataclass(kw_only=True)
class InitialisationSettings:
    """How some of a model's parameters start; see LookupRobertaConfig, which has these fields too."""

    position_init: str = option("normal", choices=("normal", "sinusoidal"))
    attention_init: str = option("normal", choices=("normal", "mimetic"))
    head_init: str = option("normal", choices=("normal", "identity"), later=True)


@dataclass(kw_only=True)
class AttentionSettings:
    """What attention's projections are; see LookupRobertaConfig, which has these fields too."""

    attention_projection: str = option("dense", choices=("dense", "lookup"), later=True)
    attention_tables: int | None = option(None, at_least=1, null="hidden_size / 8", later=True)
    attention_probes: int = option(3, at_least=1, later=True)


@dataclass(kw_only=True)
class ModelSettings(InitialisationSettings, AttentionSettings):
    """The `model` section."""

    name: str = option("", recipe=True)
    num_hidden_layers: int = option(at_least=1)
    hidden_size: int = option(at_least=1)
    num_attention_heads: int = option(at_least=1)
    intermediate_size: int = option(at_least=1)
    hidden_dropout_prob: float = option(at_least=0, below=1)
    attention_probs_dropout_prob: float = option(at_least=0, below=1)
    layer_norm_eps: float = option(above=0)
    initializer_range: float = option(above=0)
    output_bias_init: str = option("zeros", choices=("zeros", "unigram"), recipe=True)
    embedding_init: str = option("normal", choices=("normal", "ppmi"), recipe=True, later=True)
    max_positions: int = option(at_least=1, recipe=True)
    sequence_length: int = option(at_least=SHORTEST_SEQUENCE, recipe=True)

    @classmethod
    def architecture(cls) -> list[str]:
        """The options that a model's own config.json answers."""
        return [field.name for field in fields(cls) if not rule_of(field).recipe]


@dataclass(frozen=True, kw_only=True)
class TrainedTokenizerSettings:
    """`tokenizer=trained`."""

    name: str = option("trained")
    vocab_size: int = option(8192, at_least=SMALLEST_VOCABULARY)
    max_characters: int | None = option(100_000_000, at_least=1, null="all")


@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizerSettings:
    """`tokenizer=pretrained`."""

    name: str = option("pretrained")
    path: str | None = option()


@dataclass(frozen=True, kw_only=True)
class NoTrackerSettings:
    """`tracker=none`."""

    name: str = option("none")


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """`tracker=wandb`."""

    name: str = option("wandb")
    project: str = option("lookupffn")
    entity: str | None = option(None)


@dataclass(frozen=True, kw_only=True)
class TrackioSettings:
    """`tracker=trackio`."""

    name: str = option("trackio")
    project: str = option("lookupffn")
    space_id: str | None = option(None)


TokenizerSettings = TrainedTokenizerSettings | PretrainedTokenizerSettings
TrackerSettings = NoTrackerSettings | TrackioSettings | WandbSettings

TOKENIZERS = {"trained": TrainedTokenizerSettings, "pretrained": PretrainedTokenizerSettings}
TRACKERS = {"none": NoTrackerSettings, "trackio": TrackioSettings, "wandb": WandbSettings}
# sections whose options do not depend on a choice
SECTIONS = {
    "training": TrainingSettings,
    "optimizer": OptimizerSettings,
    "evaluation": EvaluationSettings,
    "model": ModelSettings,
}


def read_section(section: str, values: Mapping[str, Any], cls: type | None = None) -> Any:
    """A section's values as its dataclass.

    Args:
        section: its name in the config; one of ``SECTIONS`` unless ``cls`` is given.
        values: the resolved values.
        cls: the dataclass.

    Raises:
        UserError: a value that cannot be.
    """
    return read(cls or SECTIONS[section], values, f"{section}.", f"option of {section}")


def read_choice(section: str, values: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    """A section whose ``name`` says which dataclass it is.

    Raises:
        UserError: an unknown name, or a value that cannot be.
    """
    name = values.get("name")
    if not isinstance(name, str) or name not in kinds:
        raise unknown_name(section, name, kinds)
    return read(kinds[name], values, f"{section}.", f"option of {section} {name!r}")


def later_settings() -> dict[str, dict[str, Any]]:
    """The options that were added when runs had names already, with their defaults, by section."""
    return {
        section: {field.name: field.default for field in fields(cls) if rule_of(field).later}
        for section, cls in SECTIONS.items()
    }


def changeable_settings() -> list[str]:
    """What may change when a run goes on, as "output_dir", "training.max_steps"."""
    found = names_where(RunSettings, "changeable")
    for section, cls in SECTIONS.items():
        found += [f"{section}.{name}" for name in names_where(cls, "changeable")]
    return found
