"""Which runs may be compared, and which differ by their seed alone.

Runs are comparable, and form a group, where all of this is equal:
- the text and how it is cut: data_fingerprint, sequence_length;
- the tokenizer: tokenizer_fingerprint;
- what is scored: the mask rate and masked_validation_tokens (the masks follow from the data's fingerprint);
- the model: everything in the `model` section but its name (the feed-forward is not in it);
- the weights it started from: init_from;
- the budget: tokens trained, to within a thousandth, for the last step is rounded up to a whole batch.
What may differ is what one wants to compare: the feed-forward and its options, and how it was trained on those tokens
(optimizer, batch size, precision). Machine, threads, processes and logging change no result that is compared, except
speed.

A variant is the runs of a group that differ by their seed alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lookupffn.errors import UserError
from lookupffn.report.runs import LeftOut, Run, is_number

_BUDGET_TOLERANCE = 1e-3
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Variant:
    """The runs of one group that differ by their seed alone.

    Attributes:
        ffn: the feed-forward's name.
        label: the name, and those settings that tell it from the group's other variants of this feed-forward.
        settings: all settings (see ``Run``).
        runs: by seed.
    """

    ffn: str
    label: str
    settings: Mapping[str, Any]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Group:
    """Runs that may be compared.

    Attributes:
        name: model, data and budget, and what else tells it from the other groups; fit for a folder.
        conditions: what all its runs share.
        variants: in the order of their labels.
    """

    name: str
    conditions: Mapping[str, Any]
    variants: tuple[Variant, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs of all variants."""
        return [run for variant in self.variants for run in variant.runs]


def comparable_groups(runs: Sequence[Run]) -> tuple[list[Group], list[LeftOut]]:
    """Splits runs into groups that may be compared.

    Args:
        runs: at least one.

    Returns:
        The groups by name, and the runs left out because their variant has another run of the same seed.
    """
    budgets = _budgets(run.conditions["tokens"] for run in runs)
    members: dict[frozenset[tuple[str, Any]], list[Run]] = defaultdict(list)
    for run in runs:
        conditions = {**run.conditions, "tokens": budgets[run.conditions["tokens"]]}
        members[frozenset(conditions.items())].append(run)
    groups, left_out = [], []
    for (key, same), name in zip(members.items(), _names(members), strict=True):
        variants, repeats = _variants(same)
        groups.append(Group(name, dict(sorted(key)), tuple(variants)))
        left_out.extend(repeats)
    return sorted(groups, key=lambda group: group.name), left_out


def differences(groups: Sequence[Group]) -> str:
    """In what groups differ: "model.hidden_size (128; 256), tokens (6,144,000; 8,003,584)"."""
    found = []
    for key in differing([group.conditions for group in groups]):
        values = {group.conditions.get(key) for group in groups}
        numbers = sorted(value for value in values if is_number(value))
        texts = sorted(show(value) for value in values if not is_number(value))
        if key.endswith("fingerprint"):
            texts = [text[:8] for text in texts]
        found.append(f"{key} ({'; '.join([*(f'{number:,}' for number in numbers), *texts])})")
    return ", ".join(found)


def require_one_group(groups: Sequence[Group]) -> None:
    """Raises a UserError that says what differs where there is more than one group."""
    if len(groups) > 1:
        raise UserError(
            f"these runs cannot be compared: they differ in {differences(groups)}; "
            "give runs that agree, or leave out --strict for one comparison a group"
        )


def _budgets(tokens: Iterable[float]) -> dict[float, float]:
    """The budget that each number of tokens belongs to: the smallest one it is within the tolerance of."""
    found: dict[float, float] = {}
    budget = 0.0
    for count in sorted(set(tokens)):
        if count > budget * (1 + _BUDGET_TOLERANCE):
            budget = count
        found[count] = budget
    return found


def _variants(runs: list[Run]) -> tuple[list[Variant], list[LeftOut]]:
    members: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        members[run.ffn, frozenset(run.settings.items())].append(run)
    by_ffn: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for same in members.values():
        by_ffn[same[0].ffn].append(same[0].settings)
    variants, left_out = [], []
    for same in members.values():
        seeds: dict[int, Run] = {}
        for run in sorted(same, key=lambda run: str(run.path)):
            first = seeds.setdefault(run.seed, run)
            # two runs of one seed say nothing about the spread over seeds
            if first is not run:
                left_out.append(LeftOut(run.path, f"repeats seed {run.seed} of {first.path}"))
        ffn, settings = same[0].ffn, same[0].settings
        label = label_of(ffn, settings, by_ffn[ffn])
        variants.append(Variant(ffn, label, settings, tuple(seeds[seed] for seed in sorted(seeds))))
    return sorted(variants, key=lambda variant: variant.label), left_out


def label_of(ffn: str, settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """lookup, num_tables 32, lr 0.004."""
    # options of the feed-forward first, then the optimizer's, then those of training
    told = sorted((key for key in differing(others) if key in settings), key=lambda key: key.partition(".")[0])
    names = [key.rpartition(".")[2] for key in told]
    # an option of the feed-forward may be called like one of the optimizer
    shown = [key if names.count(name) > 1 else name for key, name in zip(told, names, strict=True)]
    return ", ".join([ffn, *(f"{name} {show(settings[key])}" for name, key in zip(shown, told, strict=True))])


def differing(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all mappings, in the order they first appear."""
    keys = dict.fromkeys(key for mapping in mappings for key in mapping)
    return [key for key in keys if len({mapping.get(key) for mapping in mappings}) > 1]


def show(value: object) -> str:
    """A value as a person writes it."""
    if isinstance(value, tuple):
        return "/".join(map(show, value))
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def short_number(value: float) -> str:
    """8M, 6.14M, 410k, 12."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _names(members: Mapping[Any, list[Run]]) -> list[str]:
    """A folder name for each group: model, data, tokens, and as many of the differing conditions as it takes."""
    keys = [dict(sorted(key)) for key in members]
    names = [
        f"{same[0].summary['model']}-{same[0].summary['data']}-{short_number(key['tokens'])}-tokens"
        for key, same in zip(keys, members.values(), strict=True)
    ]
    for condition in sorted(set(differing(keys)) - {"tokens"}):
        if len(set(names)) == len(names):
            break
        longer = []
        for name, key in zip(names, keys, strict=True):
            value = show(key.get(condition))
            value = value[:8] if condition.endswith("fingerprint") else value
            alone = names.count(name) == 1
            longer.append(name if alone else f"{name}-{condition.rpartition('.')[2]}-{value}")
        names = longer if len(set(longer)) > len(set(names)) else names
    names = [re.sub(r"[^\w.+-]+", "_", name).lstrip(".")[:_LONGEST_NAME] for name in names]
    return [name if names.count(name) == 1 else f"{name}-{names[:i].count(name) + 1}" for i, name in enumerate(names)]
