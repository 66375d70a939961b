"""How an entry point starts: a Hydra config, one function, and one line for every mistake of the user.

Hydra's own messages for a mistyped name are long and come after seconds of imports. `run_main` therefore checks the
command line first, against the config folder, and names the nearest valid choices.
"""

import errno
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from lookupffn.errors import UserError, unknown_name
from lookupffn.signals import Interrupted, handling

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# sweeps larger than this are checked on their first members only, so that the check stays a matter of a second
CHECKED_MEMBERS = 64
# what the surroundings refuse, which a traceback would not explain any better
SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}

logger = logging.getLogger(__name__)


@handling()
def run_main(config_name: str, function: Callable[[DictConfig], object], argv: list[str] | None = None) -> None:
    """Runs ``function`` on the composed config and exits: 0, 2 after a user's mistake, 130 after Ctrl-C,
    143 after SIGTERM.

    Args:
        config_name: configs/<config_name>.yaml.
        function: the work; receives the composed, unresolved config. A ``UserError`` of it becomes one line on stderr.
            What it returns is what a sweeper (Optuna) minimises or maximises.
        argv: the command line without the program's name (default: ``sys.argv[1:]``).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    failures: list[str] = []

    def task(cfg: DictConfig) -> object:
        configure_logging()
        if sweep_member():
            logger.info("sweep member %s: %s", HydraConfig.get().job.num, " ".join(HydraConfig.get().overrides.task))
        try:
            return function(cfg)
        except UserError as error:
            failures.append(str(error))
        except OmegaConfBaseException as error:
            failures.append(one_line(error))
        except OSError as error:
            if error.errno not in SURROUNDINGS:
                raise
            failures.append(f"{error.strerror}: {error.filename or 'while writing'}; what was finished before is kept")
        if not sweep_member():
            report_failure(failures[-1])
            sys.exit(EXIT_USER_ERROR)
        # the member may run in another process or on another machine: the launcher brings the exception home
        report_failure(failures[-1])
        raise UserError(failures[-1])

    # Hydra would print a traceback and exit by itself
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        multirun = check_command_line(config_name, arguments)
        with tempfile.TemporaryDirectory() as scratch:
            if multirun:
                settings = hydra_settings(config_name, arguments)
                if settings.sweep.dir == ".":  # Hydra writes a multirun.yaml there, other engines their logs
                    folder = scratch if _is_basic(settings) else lasting_sweep_folder()
                    first = next((i for i, a in enumerate(arguments) if not a.startswith("-")), len(arguments))
                    arguments.insert(first, f"hydra.sweep.dir='{folder}'")
            sys.argv[1:] = arguments
            hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)()
    except UserError as error:
        members = f"{len(failures)} of the sweep's members failed, the first with: " if failures else ""
        report_failure(f"{members}{error}")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt as stop:  # the whole of a sweep
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{str(stop) or 'interrupted'}\n")
        sys.exit(stop.exit_status if isinstance(stop, Interrupted) else EXIT_INTERRUPTED)
    if failures:  # a sweeper that goes on without its failed members
        report_failure(f"{len(failures)} of the sweep's members failed, the first with: {failures[0]}")
        sys.exit(EXIT_USER_ERROR)


def hydra_settings(config_name: str, arguments: list[str]) -> DictConfig:
    """Hydra's own part of the config that a command line composes: launcher, sweeper, folders."""
    overrides = [parse_override(text) for text in get_args_parser().parse_args(arguments).overrides]
    lines = [override.input_line for override in overrides if not override.is_sweep_override()]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return compose(config_name, lines, with_hydra=True).hydra
        finally:
            GlobalHydra.instance().clear()


def _is_basic(settings: DictConfig) -> bool:
    return all("._internal." in settings[part]["_target_"] for part in ("launcher", "sweeper"))


def lasting_sweep_folder() -> Path:
    """Where engines other than Hydra's own keep scripts, logs and results of one sweep: below outputs/, by the time."""
    return Path("outputs", "sweeps", time.strftime("%Y-%m-%d-%H%M%S")).resolve()


def sweep_member() -> bool:
    """True inside one run of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def report_failure(message: str) -> None:
    """One line on stderr; with several processes it says which one speaks."""
    rank = os.environ.get("RANK")
    prefix = f"error (process {rank})" if rank not in (None, "0") else "error"
    sys.stderr.write(f"{prefix}: {' '.join(message.split())}\n")
    sys.stderr.flush()


def one_line(error: Exception) -> str:
    """An exception's message as a single line."""
    return " ".join(str(error).split()) or type(error).__name__


class ProgressHandler(logging.Handler):
    """Log lines on stderr that do not tear a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """INFO from the main process, warnings from the others."""
    handler = ProgressHandler()
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    # Hydra announces each member of a sweep too
    for noisy in ("httpx", "httpcore", "urllib3", "filelock", "fsspec", "accelerate", "hydra"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def check_command_line(config_name: str, arguments: list[str], config_dir: Path = CONFIG_DIR) -> bool:
    """Refuses unknown names in one line; returns whether the command is a multirun.

    Raises:
        UserError: an override that does not parse, a group choice or key that does not exist, a sweep without -m.
    """
    args = get_args_parser().parse_args(arguments)
    if args.help or args.hydra_help or args.shell_completion or args.info:
        return False
    if args.config_dir or args.config_path or args.config_name:
        return bool(args.multirun)  # the user's own config folder: Hydra's messages have to do
    overrides = [parse_override(text) for text in args.overrides]
    multirun = args.multirun or any(o.key_or_group == "hydra.mode" for o in overrides)
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"several values in {override.input_line!r}: put -m before the overrides to run them one after the "
                f"other, or quote them if they are one value: '{override.key_or_group}=\"...\"'"
            )
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        try:
            if multirun:
                overrides = [*stored_sweep(config_name, overrides), *overrides]
            members = [
                (member, check_member(config_name, member, config_dir))
                for member in islice(sweep_members(overrides), CHECKED_MEMBERS)
            ]
        finally:
            GlobalHydra.instance().clear()
    if multirun and config_name == "train":
        swept = {override.key_or_group for override in overrides if override.is_sweep_override()}
        for member, cfg in members:
            check_values(cfg, " ".join(o.input_line for o in member if o.key_or_group in swept))
    return multirun


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


def stored_sweep(config_name: str, overrides: list[Override]) -> list[Override]:
    """What the experiment's own hydra.sweeper.params adds to a command line, which goes before it."""
    lines = [override.input_line for override in overrides if not override.is_sweep_override()]
    params = compose(config_name, lines, with_hydra=True).hydra.sweeper.get("params") or {}
    given = {override.get_key_element() for override in overrides}
    return [parse_override(f"{key}={value}") for key, value in params.items() if key not in given]


def sweep_members(overrides: list[Override]) -> Iterator[list[Override]]:
    """The runs that a command line asks for, each as overrides without a sweep in them."""
    values: list[list[Override]] = []
    for override in overrides:
        if not override.is_sweep_override():
            values.append([override])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            try:
                values.append([parse_override(f"{key}={value}") for value in override.sweep_string_iterator()])
            except HydraException:  # glob(): Hydra expands it against the config folder itself
                continue
    yield from (list(member) for member in product(*values))


def check_values(cfg: DictConfig, member: str) -> None:
    """Raises a ``UserError`` where a member of a sweep would be refused for its values when its turn comes.

    Args:
        cfg: the member's composed config.
        member: its part of the sweep, for the message.
    """
    # imported here so that mistyped names, which are looked for first, are answered without waiting for torch
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.training.checks import check_config
    from lookupffn.training.setup import resolve

    try:
        config = resolve(cfg, MaskedLanguageModelling)
    except OmegaConfBaseException:  # an interpolation of something that is known only at run time
        return
    if config["init_from"]:  # the model found there decides
        return
    try:
        check_config(config, MaskedLanguageModelling)
    except UserError as error:
        raise UserError(f"{error} (in the sweep: {member})") from None


def check_member(config_name: str, overrides: list[Override], config_dir: Path) -> DictConfig:
    """One run's config, or a ``UserError`` that names the nearest valid names where an override has an unknown one."""
    groups = config_groups(config_name, config_dir)
    choices = [o for o in overrides if o.key_or_group in groups]
    for override in choices:
        check_choice(override, config_dir)
    cfg = compose(config_name, [o.input_line for o in choices])
    for override in overrides:
        if override not in choices and not override.is_hydra_override():
            check_key(override, cfg, groups)
    return compose(config_name, [o.input_line for o in overrides])


def compose(config_name: str, lines: list[str], *, with_hydra: bool = False) -> DictConfig:
    """Hydra's compose with one-line errors."""
    try:
        return hydra.compose(config_name, lines, return_hydra_config=with_hydra)
    except MissingConfigException as error:
        part, _, name = str(error.missing_cfg_file).removeprefix("hydra/").partition("/")
        if part in ("launcher", "sweeper"):
            raise UserError(f"hydra/{part}={name} is not installed: pip install hydra-{name}-{part}") from None
        raise UserError(one_line(error)) from None
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises all three for overrides
        raise UserError(one_line(error)) from None


def check_choice(override: Override, config_dir: Path) -> None:
    """ffn=lokup: the group has no such file."""
    group, value = override.key_or_group, override.value()
    if override.is_delete():
        return
    if value is None:
        raise UserError(f"{group}=null chooses nothing: give a name, or leave {group} out for its default")
    folder = config_dir / group
    valid = [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]
    for name in value if isinstance(value, list) else [value]:
        if str(name).removesuffix(".yaml") not in valid:
            raise unknown_name(group, name, valid)


def check_key(override: Override, cfg: DictConfig, groups: list[str]) -> None:
    """ffn.num_tabels=3: the composed config has no such key."""
    if override.is_add() or override.is_force_add():
        return
    node: object = cfg
    path: list[str] = []
    for part in override.key_or_group.split("."):
        keys = [str(key) for key in node if key != "hydra"] if OmegaConf.is_dict(node) else []
        if part not in keys:
            raise missing_key(part, path, keys, cfg, groups)
        path.append(part)
        # a value may be an interpolation of something that is known only at run time
        node = None if OmegaConf.is_interpolation(node, part) else node[part]


def missing_key(part: str, path: list[str], keys: list[str], cfg: DictConfig, groups: list[str]) -> UserError:
    """The error for a key that the config does not have."""
    if not path and part in groups:
        return UserError(f"{part} has no options yet: choose one first, as in {part}=<name>")
    if not path:
        return unknown_name("setting", part, {*keys, *groups})
    where = ".".join(path)
    if not keys:
        return UserError(f"{where} has no options, so {where}.{part} means nothing")
    section = OmegaConf.select(cfg, path[0])
    name = section.get("name") if OmegaConf.is_dict(section) else None
    return unknown_name(f"option of {where}{f' {name!r}' if name else ''}", part, keys)


def config_groups(config_name: str, config_dir: Path) -> list[str]:
    """The groups that a config chooses from: the keys of its defaults list."""
    defaults = OmegaConf.load(config_dir / f"{config_name}.yaml").get("defaults", [])
    keys = [str(key) for entry in defaults if OmegaConf.is_dict(entry) for key in entry]
    return [key for key in keys if not key.startswith("override ")]
