"""How a command runs: a Hydra config, one function, and one line for every mistake of the user."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lookupffn.cli.choices import CONFIG_DIR
from lookupffn.cli.command_line import Check, Command, quoted, read_command_line, unchecked_help
from lookupffn.cli.help import help_text
from lookupffn.cli.output import configure_logging, one_line, report_failure, say, use_lasting_streams, use_utf8
from lookupffn.cli.parallel import launcher_overrides, members_at_once, prepare_processes, stop_members
from lookupffn.cli.progress import Watch
from lookupffn.cli.sweep import Sweep, hydra_settings, lasting_folder, plan_sweep, runs_here
from lookupffn.errors import UserError
from lookupffn.signals import Interrupted, handling, stopping_first

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# what the surroundings refuse, which a traceback would not explain any better
SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}

Work = Callable[[DictConfig], Mapping[str, Any] | None]


def run_main(
    config_name: str,
    work: Work,
    argv: list[str] | None = None,
    *,
    results: Sequence[str] = (),
    shown: Sequence[str] = (),
    check: Check | None = None,
) -> None:
    """Runs ``work`` on the composed config and exits: 0, 2 after a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        config_name: configs/<config_name>.yaml.
        work: receives the composed, unresolved config; returns its figures by name, or None on a process that has none.
            A ``UserError`` of it becomes one line on stderr.
        argv: the command line without the program's name (default: ``sys.argv[1:]``).
        results: which of the figures a sweep's table shows, and a sweeper (Optuna) minimises or maximises.
        shown: further figures that the table shows where members have them.
        check: see ``read_command_line``.
    """
    if argv is None:
        prepare_process()
    arguments = list(sys.argv[1:] if argv is None else argv)
    exit_with(lambda: _run(config_name, work, arguments, (results, shown), check))


def run_script(work: Callable[[], object], argv: list[str] | None = None) -> None:
    """Runs a command that is no Hydra config, and exits as ``run_main`` does; ``argv`` as there."""
    if argv is None:
        prepare_process()
    configure_logging()
    exit_with(work)


def prepare_process() -> None:
    """What every command does before anything else."""
    use_utf8()
    use_lasting_streams()


@handling()
def exit_with(work: Callable[[], object]) -> None:
    """Calls ``work``; where that fails in a way that commands may fail, says so in a line and exits."""
    try:
        work()
    except UserError as error:
        report_failure(str(error))
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt as stop:  # the whole of a sweep
        if os.environ.get("RANK", "0") == "0":
            say(str(stop) or "interrupted")
        sys.exit(stop.exit_status if isinstance(stop, Interrupted) else EXIT_INTERRUPTED)


def _run(
    config_name: str, work: Work, arguments: list[str], figures: tuple[Sequence[str], ...], check: Check | None
) -> None:
    # Hydra would print a traceback and exit by itself
    os.environ["HYDRA_FULL_ERROR"] = "1"
    command = read_command_line(config_name, arguments, check=check)
    if command.help:
        sys.stdout.write(help_text(config_name, program()))
        return
    with tempfile.TemporaryDirectory() as scratch:
        if not command.multirun:
            sys.argv[1:] = command.arguments
            _call_hydra(config_name, _task(work, None))
            return
        _run_sweep(config_name, command, work, plan_sweep(config_name, command, Path(scratch), *figures))


def _run_sweep(config_name: str, command: Command, work: Work, sweep: Sweep) -> None:
    settings = hydra_settings(config_name, command)
    at_once = members_at_once(settings, sweep.size)
    overrides = launcher_overrides(settings, at_once)
    if settings.sweep.dir == ".":  # where Hydra writes its multirun.yaml and other engines their logs
        folder = sweep.folder.parent if runs_here(settings) else lasting_folder()
        overrides.append(f"hydra.sweep.dir={quoted(folder)}")
    first = next((i for i, a in enumerate(command.arguments) if not a.startswith("-")), len(command.arguments))
    # before the user's: the last of two counts
    sys.argv[1:] = [*command.arguments[:first], *overrides, *command.arguments[first:]]
    prepare_processes(at_once)
    configure_logging()
    others = partial(stop_members, sweep.folder) if at_once > 1 else _nothing
    try:
        with Watch(sweep.folder, sweep.size, at_once), stopping_first(others):
            _call_hydra(config_name, _task(work, sweep))
    except UserError as error:
        raise UserError(f"{_failed(sweep.failures())}{error}") from None
    except BrokenProcessPool:
        raise UserError("a member's process was killed (out of memory?): repeat the command to go on") from None
    finally:
        sys.stdout.write(sweep.table())
    if failures := sweep.failures():  # a sweeper that goes on without its failed members
        raise UserError(f"{_failed(failures)}{failures[0]}")


def _call_hydra(config_name: str, task: Callable[[DictConfig], object]) -> None:
    with unchecked_help():
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(task)()


def _failed(failures: list[str]) -> str:
    return f"{len(failures)} of the sweep's members failed, the first with: " if failures else ""


def _task(work: Work, sweep: Sweep | None) -> Callable[[DictConfig], object]:
    """What Hydra calls for each run, here or in another process."""

    def task(cfg: DictConfig) -> object:
        if sweep is None:
            configure_logging()
            return _reporting(lambda: work(cfg))
        with sweep.member():
            return _reporting(lambda: sweep.end_member(work(cfg)), sweep)

    return task


def _reporting(work: Callable[[], object], sweep: Sweep | None = None) -> object:
    """Calls ``work``; where that fails in a way that runs may fail, says so in a line."""
    try:
        return work()
    except UserError as error:
        failure = str(error)
    except OmegaConfBaseException as error:
        failure = one_line(error)
    except OSError as error:
        if error.errno not in SURROUNDINGS:
            raise
        failure = f"{error.strerror}: {error.filename or 'while writing'}; what was finished before is kept"
    report_failure(failure)
    if sweep is None:
        sys.exit(EXIT_USER_ERROR)
    sweep.note_failure(failure)
    # the member may run in another process or on another machine: the launcher brings the exception home
    raise UserError(failure)


def program() -> str:
    """What the user typed to start this command: "python train.py", "lookupffn-train"."""
    name = Path(sys.argv[0]).name
    return f"python {sys.argv[0]}" if name.endswith(".py") else name


def _nothing() -> None:
    return None


def sweep_member() -> bool:
    """True inside one run of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
