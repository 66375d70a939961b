"""The command line, read before Hydra does: its own messages for a mistyped name are long, and come after seconds.

Every unknown name is refused in one line that names the nearest valid ones. Values that a sweep's members cannot have
are refused before the first of them runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lookupffn.cli.choices import CONFIG_DIR, choices, groups, race_members, register
from lookupffn.cli.output import one_line
from lookupffn.config.data import SOURCES
from lookupffn.config.race import RACE
from lookupffn.config.schema import texts_of
from lookupffn.config.sections import SECTIONS, TOKENIZERS, TRACKERS, EvaluateSettings, RunSettings
from lookupffn.errors import UserError, unknown_name

# sweeps larger than this are checked on their first members only, so that the check stays a matter of a second
CHECKED_MEMBERS = 64

# Hydra's own plug-ins: the package that each name is in
_ENGINES = {
    "launcher": {
        "basic": "hydra-core", "joblib": "hydra-joblib-launcher", "ray": "hydra-ray-launcher",
        "ray_aws": "hydra-ray-launcher", "rq": "hydra-rq-launcher", "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher",
    },
    "sweeper": {
        "basic": "hydra-core", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper",
        "optuna": "hydra-optuna-sweeper",
    },
}  # fmt: skip

# Hydra raises all three
_WRONG_OVERRIDE = (HydraException, OmegaConfBaseException, ValueError)

Check = Callable[[DictConfig], object]


@dataclass(frozen=True)
class Command:
    """A command line that holds no mistake that can be seen yet.

    Attributes:
        arguments: what Hydra gets.
        help: whether the user asks what there is to type.
        overrides: the settings given, and before them those of a sweep that an experiment holds.
        multirun: whether they are run for several values.
        configs: of its runs, as far as they have been composed.
    """

    arguments: list[str]
    help: bool = False
    overrides: Sequence[Override] = ()
    multirun: bool = False
    configs: Configs | None = None


def read_command_line(
    config_name: str, arguments: list[str], config_dir: Path = CONFIG_DIR, check: Check | None = None
) -> Command:
    """Reads and checks a command line.

    Args:
        config_name: configs/<config_name>.yaml.
        arguments: without the program's name.
        config_dir: where the groups are.
        check: refuses a composed config for its values; called for the members of a sweep, which else would fail when
            their turn comes.

    Raises:
        UserError: an override that does not parse, a group choice or key that does not exist, a sweep without -m.
    """
    with unchecked_help():
        args = get_args_parser().parse_args(arguments)
    if args.help:
        return Command(arguments, help=True)
    if args.hydra_help or args.shell_completion or args.info:
        return Command(arguments)
    if args.config_dir or args.config_path or args.config_name:
        # the user's own config folder: Hydra's messages have to do
        return Command(arguments, multirun=bool(args.multirun))
    texts = _text_settings()
    literal = {text: _literal(text, texts) for text in args.overrides}
    arguments = [literal.get(argument, argument) for argument in arguments]
    overrides = [parse_override(literal[text]) for text in args.overrides]
    multirun = args.multirun or any(o.key_or_group == "hydra.mode" for o in overrides)
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"several values in {override.input_line!r}: put -m before the overrides to run them one after the "
                f"other, or quote them if they are one value: '{override.key_or_group}=\"...\"'"
            )
    with composing(config_dir):
        if multirun:
            overrides = [*_stored_sweep(config_name, overrides), *overrides]
        configs = Configs(config_name, config_dir)
        members = [(member, configs.of(member)) for member in islice(sweep_members(overrides), CHECKED_MEMBERS)]
    if multirun and check is not None:
        swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
        for member, cfg in members:
            _check_values(check, cfg, " ".join(o.input_line for o in member if o.key_or_group in swept))
    return Command(arguments, overrides=overrides, multirun=multirun, configs=configs)


@contextmanager
def unchecked_help() -> Iterator[None]:
    """Lets Hydra 1.3 make its parser, which has a help text that is no string yet: Python 3.14 refuses that."""
    # shadows the inherited check
    setattr(argparse.ArgumentParser, "_check_help", lambda parser, action: None)  # noqa: B010
    try:
        yield
    finally:
        delattr(argparse.ArgumentParser, "_check_help")


@contextmanager
def composing(config_dir: Path = CONFIG_DIR) -> Iterator[None]:
    """Hydra's global state, for as long as configs are composed."""
    register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            yield
        finally:
            GlobalHydra.instance().clear()


def parse_override(text: str) -> Override:
    """One override of the command line, parsed by Hydra's own grammar."""
    try:
        return OverridesParser.create().parse_override(text)
    except OverrideParseException as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise UserError(
            f"cannot read the override {text!r} ({cause}): write key=value, and quote special characters"
        ) from None
    except HydraException as error:
        raise UserError(f"cannot read the override {text!r}: {one_line(error)}") from None


def quoted(value: object) -> str:
    """A value as an override of our own must write it: any text, taken as it is.

    Hydra's grammar ends a quoted text at its quote, halves backslashes before one, and fills in ``${...}``.
    """
    text = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), str(value))
    return "'" + text.replace("${", "\\${") + "'"


def _text_settings() -> set[str]:
    """What is declared as text, as "output_dir", "tokenizer.path"."""
    classes = [("", RunSettings), ("", EvaluateSettings), *((f"{name}.", cls) for name, cls in SECTIONS.items())]
    for section, kinds in (("tokenizer", TOKENIZERS), ("tracker", TRACKERS), ("data", SOURCES)):
        classes += [(f"{section}.", cls) for cls in kinds.values()]
    return {f"{prefix}{name}" for prefix, cls in classes for name in texts_of(cls)}


def _literal(text: str, texts: set[str]) -> str:
    """An override in which what is typed for a text stays as it is: a folder may be called 1_000, 1e3 or läufe."""
    key, _, raw = text.partition("=")
    if key.lstrip("+") not in texts:
        return text
    try:
        override = parse_override(text)
    except UserError:
        if not raw.strip() or raw.strip()[0] in "'\"[{":
            raise
        return f"{key}={quoted(raw.strip())}"  # letters that Hydra's grammar does not have
    if override.is_sweep_override():
        values, pieces = (override.value().list if override.is_choice_sweep() else []), raw.split(",")
        if len(values) != len(pieces) or not any(isinstance(value, int | float) for value in values):
            return text
        return f"{key}={','.join(quoted(piece.strip()) for piece in pieces)}"
    value = override.value()
    return f"{key}={quoted(raw.strip())}" if isinstance(value, int | float) else text


def _stored_sweep(config_name: str, overrides: list[Override]) -> list[Override]:
    """What the experiment's own hydra.sweeper.params adds to a command line, which goes before it."""
    lines = [override.input_line for override in overrides if not override.is_sweep_override()]
    params = compose(config_name, lines, with_hydra=True).hydra.sweeper.get("params") or {}
    given = {override.get_key_element() for override in overrides}
    return [parse_override(f"{key}={value}") for key, value in params.items() if key not in given]


def sweep_members(overrides: Sequence[Override]) -> Iterator[list[Override]]:
    """The runs that a command line asks for, each as overrides without a sweep in them."""
    yield from (list(member) for member in product(*(expanded(override) for override in overrides)))


def expanded(override: Override) -> list[Override]:
    """The values that one override goes through; itself where that cannot be told before the sweep."""
    if not override.is_sweep_override() or not override.is_discrete_sweep():
        return [override] if not override.is_sweep_override() else []
    key = override.get_key_element()
    try:
        return [parse_override(f"{key}={value}") for value in override.sweep_string_iterator()]
    except HydraException:  # glob(): Hydra expands it against the config folder itself
        return []


def _check_values(check: Check, cfg: DictConfig, member: str) -> None:
    try:
        check(cfg)
    except OmegaConfBaseException:  # an interpolation of something that is known only at run time
        return
    except UserError as error:
        raise UserError(f"{error} (in the sweep: {member})") from None


class Configs:
    """The configs of one command's runs: files are read once for each choice of them, not for each run."""

    def __init__(self, config_name: str, config_dir: Path = CONFIG_DIR) -> None:
        """As for ``read_command_line``."""
        self._name, self._dir = config_name, config_dir
        self._groups = groups(config_name, config_dir)
        self._chosen: dict[tuple[str, ...], DictConfig] = {}

    def of(self, overrides: Sequence[Override]) -> DictConfig:
        """One run's config; call it inside ``composing``.

        Raises:
            UserError: an override cannot be; it names the nearest valid names for an unknown one.
        """
        # of files, and what is Hydra's own
        choosing = [o for o in overrides if o.key_or_group in self._groups or o.is_hydra_override()]
        values = [o for o in overrides if o not in choosing]
        lines = tuple(o.input_line for o in choosing)
        if lines not in self._chosen:
            for override in choosing:
                if not override.is_hydra_override():
                    _check_choice(override, self._dir)
            self._chosen[lines] = compose(self._name, list(lines))
        cfg = self._chosen[lines].copy()
        for override in values:
            _check_key(override, cfg, self._groups)
        try:
            ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        except _WRONG_OVERRIDE as error:
            raise UserError(one_line(error)) from None
        return cfg


def compose(config_name: str, lines: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Hydra's compose with one-line errors."""
    try:
        return hydra.compose(config_name, lines, return_hydra_config=with_hydra)
    except MissingConfigException as error:
        part, _, name = str(error.missing_cfg_file).removeprefix("hydra/").partition("/")
        if part in _ENGINES:
            if name not in _ENGINES[part]:
                raise unknown_name(f"hydra/{part}", name, _ENGINES[part]) from None
            raise UserError(f"hydra/{part}={name} is not installed: pip install {_ENGINES[part][name]}") from None
        raise UserError(one_line(error)) from None
    except _WRONG_OVERRIDE as error:
        raise UserError(one_line(error)) from None


def _check_choice(override: Override, config_dir: Path) -> None:
    """ffn=lokup: the group has no such file."""
    group, value = override.key_or_group, override.value()
    if override.is_delete():
        return
    if value is None:
        raise UserError(f"{group}=null chooses nothing: give a name, or leave {group} out for its default")
    valid = choices(group, config_dir)
    hidden = race_members(config_dir) if group == "ffn" else []
    for name in value if isinstance(value, list) else [value]:
        typed = str(name).removesuffix(".yaml")
        if typed not in valid and typed not in hidden:
            raise unknown_name(group, name, hidden if typed.startswith(f"{RACE}/") else valid)


def _check_key(override: Override, cfg: DictConfig, known: list[str]) -> None:
    """ffn.num_tabels=3: the composed config has no such key."""
    if override.is_add() or override.is_force_add():
        return
    node: Any = cfg
    path: list[str] = []
    for part in override.key_or_group.split("."):
        keys = [str(key) for key in node if key != "hydra"] if OmegaConf.is_dict(node) else []
        if path == ["ffn"]:
            keys = [key for key in keys if key != RACE]
        if part not in keys:
            raise _missing_key(part, path, keys, cfg, known)
        path.append(part)
        # a value may be an interpolation of something that is known only at run time
        node = None if OmegaConf.is_interpolation(node, part) else node[part]


def _missing_key(part: str, path: list[str], keys: list[str], cfg: DictConfig, known: list[str]) -> UserError:
    """The error for a key that the config does not have."""
    if not path and part in known:
        return UserError(f"{part} has no options yet: choose one first, as in {part}=<name>")
    if not path:
        return unknown_name("setting", part, {*keys, *known})
    where = ".".join(path)
    if not keys:
        return UserError(f"{where} has no options, so {where}.{part} means nothing")
    section = OmegaConf.select(cfg, path[0])
    name = section.get("name") if OmegaConf.is_dict(section) else None
    return unknown_name(f"option of {where}{f' {name!r}' if name else ''}", part, keys)
