"""How an option is declared, and the one validator of everything a user can set.

A section of the config, or the options of a feed-forward, is a dataclass. Each field's annotation gives the types that
are taken, ``option(...)`` the range or the choices; ``read`` makes an instance of what a user typed, or says in one
line what is wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from numbers import Real
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lookupffn.errors import UserError, unknown_name

_KEY = "option"
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What an option may be beside its type, and what it is used for (see ``option``)."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    power_of_two: bool = False
    choices: Collection[str] | Callable[[], Collection[str]] | None = None
    null: str = ""
    shared: bool = False
    changeable: bool = False
    recipe: bool = False
    later: bool = False
    symbol: str = ""


def option(default: Any = dataclasses.MISSING, **rule: Any) -> Any:
    """A field of a section.

    Args:
        default: its value where none is given; without one it must be given.
        **rule: any of
            at_least, above, at_most, below: the range of a number, or of each of several;
            power_of_two: whether a whole number must be one;
            choices: the only texts that are taken, or a function that returns them;
            null: what null means, for messages;
            shared: a feed-forward's option that takes the model's field of the same name where it is left open;
            changeable: whether a run may go on with another value;
            recipe: of the model section, whether it says how to train, rather than what the model is;
            later: whether it was added when runs had names already: at its default it is no part of a name;
            symbol: the letter that stands for it in names of runs.
    """
    return dataclasses.field(default=default, metadata={_KEY: Rule(**rule)})


def rule_of(field: dataclasses.Field) -> Rule:
    """The rule of a dataclass's field; one that allows everything where ``option`` was not used."""
    return field.metadata.get(_KEY, Rule())


def names_where(cls: type, flag: str) -> list[str]:
    """The options whose rule has a flag (or a symbol) set, in the order they are declared."""
    return [field.name for field in dataclasses.fields(cls) if getattr(rule_of(field), flag)]


def texts_of(cls: type) -> list[str]:
    """The options that take text."""
    return [name for name, types in _types(cls).items() if str in types]


def read(cls: type[T], values: Mapping[str, Any], prefix: str, kind: str) -> T:
    """An instance of a section's dataclass from what a user typed.

    Whole numbers may be written as floats (1e3), and any number as a whole one.

    Args:
        cls: the dataclass; its ``check`` method, if it has one, compares options with each other.
        values: by option.
        prefix: what stands before an option's name in a message: "training.", "ffn 'lookup': ".
        kind: what its options are called: "option of training".

    Raises:
        UserError: an unknown or missing option, or a value that cannot be.
    """
    types, fields = _types(cls), {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise unknown_name(kind, name, fields)
    checked = {}
    for name, field in fields.items():
        if name in values:
            checked[name] = _checked(values[name], types[name], rule_of(field), prefix, name)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{prefix}{name} is missing: give {_wanted(types[name], rule_of(field))}")
    section = cls(**checked)
    if hasattr(section, "check"):
        section.check()
    return section


@cache
def _types(cls: type) -> dict[str, tuple[Any, ...]]:
    """The types that each option takes: the members of a union, or the one type."""
    hints = get_type_hints(cls)
    unions = (Union, UnionType)
    return {name: get_args(hint) if get_origin(hint) in unions else (hint,) for name, hint in hints.items()}


def _checked(value: Any, types: tuple[Any, ...], rule: Rule, prefix: str, name: str) -> Any:
    if value is None and NoneType in types:
        return None
    for kind in types:
        found = _converted(value, kind)
        if found is not None:
            if isinstance(found, str) and rule.choices is not None and found not in _choices(rule):
                raise unknown_name(f"{prefix}{name}", found, _choices(rule))
            if all(_in_range(number, rule) for number in (found if isinstance(found, tuple) else (found,))):
                return found
    raise UserError(f"{prefix}{name} must be {_wanted(types, rule)}, not {value!r}")


def _converted(value: Any, kind: Any) -> Any:
    """The value as one of a type's; None where it is not."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is float:
        return float(value) if number and abs(value) < math.inf and abs(value) <= 1.7e308 else None
    if kind is int:
        return int(value) if number and abs(value) < math.inf and value == int(value) else None
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            return None
        found = tuple(_converted(one, member) for one, member in zip(value, kinds, strict=True))
        return None if None in found else found
    if get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            return None
        members = [_converted(one, get_args(kind)[0]) for one in value]
        return None if None in members else members
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def _in_range(value: Any, rule: Rule) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True
    return (
        (rule.at_least is None or value >= rule.at_least)
        and (rule.above is None or value > rule.above)
        and (rule.at_most is None or value <= rule.at_most)
        and (rule.below is None or value < rule.below)
        and (not rule.power_of_two or (value >= 1 and int(value) & (int(value) - 1) == 0))
    )


def _choices(rule: Rule) -> Collection[str]:
    return rule.choices() if callable(rule.choices) else rule.choices


def _wanted(types: tuple[Any, ...], rule: Rule) -> str:
    """ "a whole number of at least 1, or null (no clipping)"."""
    kinds = [_described(kind, rule) for kind in types if kind is not NoneType]
    if NoneType in types:
        kinds.append(f"null ({rule.null})" if rule.null else "null")
    return " or ".join(kinds)


def _described(kind: Any, rule: Rule) -> str:
    if kind is str and rule.choices is not None:
        return "one of " + ", ".join(sorted(_choices(rule)))
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers {_range(rule)}".strip()
    if get_origin(kind) is list:
        return f"a list of {_KINDS[get_args(kind)[0]]}"
    text = "a power of two" if rule.power_of_two else _KINDS.get(kind, getattr(kind, "__name__", str(kind)))
    return f"{text} {_range(rule)}".strip() if kind in (int, float) else text


def _range(rule: Rule) -> str:
    low, high = rule.at_least, rule.at_most
    if rule.above is not None:
        upper = f" and at most {high:g}" if high is not None else f" and below {rule.below:g}" if rule.below else ""
        return f"above {rule.above:g}{upper}"
    if low is None:
        return "" if high is None else f"of at most {high:,}"
    if rule.below is not None:
        return f"from {low:g} to below {rule.below:g}"
    return f"of at least {low:g}" if high is None else f"from {low} to {high}"
