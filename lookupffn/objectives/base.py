"""What an objective is: all that the trainer asks of one, and the check that its numbers are finite.

A new objective is a file here with a subclass of ``Objective``, and an entry point that hands the class to
``lookupffn.training.train``. Everything random in it must be a function of (seed, step), so that a resumed run repeats
what an uninterrupted one would have done.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lookupffn.config.run import RunConfig
from lookupffn.cost import Cost
from lookupffn.distributed.processes import any_process
from lookupffn.distributed.sharding import local
from lookupffn.errors import UserError
from lookupffn.layers import ROLES, FeedForward
from lookupffn.models import build_model_config
from lookupffn.models.modeling import LookupRobertaLayer
from lookupffn.objectives.model_config import starting_model
from lookupffn.runs.model_source import ModelSource


class EvaluationStopped(Exception):
    """An evaluation was asked to stop before its end."""


class NonFiniteError(UserError):
    """The loss, a gradient or a weight became NaN or infinite."""


class Objective(ABC):
    """What one run trains for: data, model, loss, score, and the bar to beat.

    A run resolves its config, lets the objective ``adopt`` the model that it starts from, reads the config, and builds
    the objective with it. The trainer calls ``prepare``; everything else comes after that.

    Attributes:
        name: for messages.
        sections: of its config, beside training, optimizer and tracker.
        layer_class: of the model's layers, by which FSDP shards it.
        config: of the run.
        source: the model that it starts from; None for a new one.
        model_config: of a new model, before it has a vocabulary.
        tokenizer: saved beside the model; from ``prepare`` on.
        tokens_per_step: tokens of a step over all processes, the mean where steps differ; from ``prepare`` on.
        steps_per_epoch: steps that see every training example once, not rounded; from ``prepare`` on.
        final_score_differs: whether ``score(final=True)`` scores other examples than ``score(final=False)``.
    """

    name: ClassVar[str]
    sections: ClassVar[tuple[str, ...]]
    layer_class: ClassVar[type[nn.Module]] = LookupRobertaLayer
    tokenizer: PreTrainedTokenizerBase
    tokens_per_step: float
    steps_per_epoch: float
    final_score_differs: bool = False

    def __init__(self, config: RunConfig, source: ModelSource | None = None) -> None:
        """
        Args:
            config: of the run.
            source: what ``adopt`` returned.

        Raises:
            UserError: a model that cannot be.
        """
        self.config, self.source = config, source
        self.model_config = build_model_config(config.model, config.ffn, config.transformers)

    @classmethod
    def adopt(cls, values: dict[str, Any]) -> ModelSource | None:
        """Makes a run's values say what the model that `init_from` names decides, such as its architecture.

        Args:
            values: of the config, resolved but not checked; what is recorded and checked are the values after this.

        Returns:
            The model; None for a new one, and where it is gone and an unfinished run can do without.

        Raises:
            UserError: no such model, or it does not fit the run.
        """
        return starting_model(values)

    @abstractmethod
    def prepare(self, folder: Path) -> None:
        """Reads or prepares the data, on every process.

        Args:
            folder: of the run; an earlier session may have left checkpoints in it.

        Raises:
            UserError: anything wrong with the data.
        """

    def write_files(self, folder: Path) -> None:  # noqa: B027
        """Writes what else of the data a run folder is to hold, on the main process; nothing by default."""

    @abstractmethod
    def fingerprints(self) -> dict[str, str]:
        """What a run may not change when it resumes, as "<what>_fingerprint": kept in checkpoints and summary.json."""

    @abstractmethod
    def build_model(self, checkpoint: Path | None) -> PreTrainedModel:
        """The model: from a checkpoint of this run, from what the config starts from, or new (seeded by the config).

        Raises:
            UserError: it cannot be loaded, or does not fit the data.
        """

    @abstractmethod
    def costs(self, model: PreTrainedModel) -> dict[str, Any]:
        """What the model costs, as summary.json has it (see ``model_costs``); asked again at the end of a run."""

    @property
    @abstractmethod
    def bar(self) -> str:
        """What a model must beat to have learned anything, for the log: "unigram perplexity 977.0"."""

    @abstractmethod
    def tokens(self, steps: int) -> int:
        """Tokens of the first ``steps`` steps, over all processes."""

    @abstractmethod
    def training_batches(
        self, *, start_step: int, end_step: int, rank: int, world_size: int, accumulation: int
    ) -> Iterator[list[Any]]:
        """Steps ``start_step`` to ``end_step`` of process ``rank``: for each a list of ``accumulation`` micro-batches.

        A step is a function of (seed, step) alone, and all micro-batches of a step weigh the same.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        """Mean loss of a micro-batch, without auxiliary losses; ``model`` may be wrapped (DDP, compiled)."""

    @abstractmethod
    def score(
        self, model: PreTrainedModel, accelerator: Accelerator, *, final: bool, stop: Callable[[], bool] | None = None
    ) -> dict[str, float]:
        """Scores the validation data, in float32 and whatever the batch size and the number of processes.

        Args:
            model: not wrapped.
            accelerator: of the run; all processes share the work and get the result.
            final: whether this is the score of the finished run rather than one on the way.
            stop: asked before each batch whether to give up; answers all processes the same.

        Returns:
            Values for a line of metrics.jsonl, "validation_loss" (by which the best step is chosen) among them.

        Raises:
            EvaluationStopped: ``stop`` said so.
        """

    @abstractmethod
    def describe(self, line: dict[str, Any]) -> str:
        """A line of metrics.jsonl that has a score, in words: "validation perplexity 12.30 (loss 2.5096)"."""

    def record(self) -> dict[str, Any]:
        """More JSON values for each checkpoint's record; none by default."""
        return {}

    @abstractmethod
    def summary(self, score: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What summary.json says of data and scores.

        Args:
            score: the last line of metrics.jsonl, or what ``score`` returned.
            lines: metrics.jsonl.
        """


def model_costs(model: PreTrainedModel, total: Cost) -> dict[str, Any]:
    """Cost and parameters of a model with a feed-forward of ours, and of GEMM feed-forwards in its place.

    Args:
        model: a LookupRoberta with any head.
        total: cost of one token in all of it.
    """
    ffn, gemm = model.ffn_cost(), model.gemm_ffn_cost()
    options = dict(model.config.ffn)
    layers = model.config.num_hidden_layers
    feed_forwards: list[FeedForward] = model.feed_forwards()
    roles = feed_forwards[0].parameter_roles() if feed_forwards else {}
    return {
        "ffn": options.pop("name"),
        "ffn_options": options,
        "ffn_parameter_roles": [role for role in ROLES if roles.get(role)],
        # of all layers together
        "ffn_flops_per_token": ffn.flops,
        "ffn_flops_per_token_per_layer": ffn.flops / layers,
        "gemm_ffn_flops_per_token": gemm.flops,
        "model_flops_per_token": total.flops,
        "parameters_touched": total.parameters_touched,
        "ffn_parameters_touched": ffn.parameters_touched,
        "ffn_parameters": sum(p.numel() for ffn in feed_forwards for p in ffn.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Takes off the autocast that accelerate wraps around a model's forward, for as long as the block runs."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def finite_weights(model: nn.Module, accelerator: Accelerator) -> bool:
    """Whether all weights are finite, on every process."""
    # one synchronisation for all of them
    finite = torch.stack([torch.isfinite(local(p.detach())).all() for p in model.parameters()]).all()
    return not any_process(accelerator, not finite)


def check_weights(model: nn.Module, step: int, accelerator: Accelerator) -> None:
    """Raises a NonFiniteError where a weight is NaN or infinite: nothing to keep as a checkpoint."""
    if not finite_weights(model, accelerator):
        raise NonFiniteError(f"step {step}: {describe_non_finite(model)}")


def check_validation(loss: float, where: str, model: nn.Module) -> None:
    """Raises a NonFiniteError where a validation loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise NonFiniteError(f"{where}: validation loss {loss}; {describe_non_finite(model)}")


def describe_non_finite(model: nn.Module) -> str:
    """Which parameters, in one line."""
    named = list(model.named_parameters())
    weights = [n for n, p in named if not torch.isfinite(local(p)).all()]
    gradients = [n for n, p in named if p.grad is not None and not torch.isfinite(local(p.grad)).all()]
    kind, names = ("weights", weights) if weights else ("gradients", gradients)
    if not names:
        return "weights and gradients are finite"
    return f"non-finite {kind} in {len(names)} parameters: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
