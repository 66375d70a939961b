"""Project a lookup to a machine: prints and draws times over shapes, or writes the times of finished runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lookupffn.errors import UserError

if TYPE_CHECKING:
    from lookupffn.profiling.machine import Machine
    from lookupffn.report.runs import Run


logger = logging.getLogger(__name__)

TOKENS = 8192  # of a call


def project_hardware(cfg: DictConfig) -> None:
    """One projection.

    Raises:
        UserError: a machine, model or feed-forward that cannot be, or an output that cannot be written.
    """
    from lookupffn.config.race import without_race
    from lookupffn.profiling.hardware import describe
    from lookupffn.profiling.plots import plot_axes, plot_grid, plot_machines
    from lookupffn.profiling.project import axes, base_point, project, table

    config = OmegaConf.to_container(without_race(cfg), resolve=True)
    machine = machine_in(cfg)
    threads = machine.cores if config["threads"] is None else config["threads"]
    if config["runs"]:
        return _write_times(config, machine, threads)
    point = base_point(config["model"], config["ffn"], config["tokens"], config["precision"], threads)
    projected = {axis: project(points, machine) for axis, points in axes(point).items()}
    sys.stdout.write(f"{describe(machine)}\n\n{table(projected, machine)}")
    if config["output"]:
        folder = Path(config["output"])
        try:
            plot_axes(projected, machine, folder / "axes.png")
            plot_grid(point, machine, folder / "break-even.png")
            plot_machines(point, known_machines(), folder / "machines.png")
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from None
        sys.stdout.write(f"figures: {folder}\n")


def machine_in(cfg: DictConfig) -> Machine:
    """The machine of a command's hardware_file or, without that, of its hardware.

    Raises:
        UserError: it cannot be read, or is none.
    """
    from lookupffn.profiling.hardware import load_machine, machine_of

    if cfg.hardware_file:
        return load_machine(Path(cfg.hardware_file))
    return machine_of(OmegaConf.to_container(cfg.hardware, resolve=True), "hardware")


def project_run(cfg: DictConfig, summary: Mapping[str, Any]) -> dict[str, float]:
    """What the feed-forwards of a run that has just ended would take on its config's machine; says it in a line.

    Args:
        cfg: the run's, with a machine.
        summary: of the run.

    Returns:
        Microseconds a token of all layers, and GEMM's time over it, as ``run_times`` has them.
    """
    from lookupffn.config.run import resolve
    from lookupffn.objectives import MaskedLanguageModelling
    from lookupffn.report.inference_times import SIZES

    values, machine = resolve(cfg, MaskedLanguageModelling.sections), machine_in(cfg)
    MaskedLanguageModelling.adopt(values)
    sizes = {name: values["model"][name] for name in SIZES}
    us, ratio = ffn_time({"ffn": summary["ffn"], "ffn_options": summary["ffn_options"], **sizes}, machine)
    logger.info(
        "projected to %s (all cores, float32, %s tokens a call): %.3g us a token in all feed-forwards, %.2f times as "
        "fast as GEMM",
        *(machine.name, f"{TOKENS:,}", us, ratio),
    )
    return {"projected_us_per_token": us, "projected_ratio": ratio}


def known_machines() -> list[Machine]:
    """All of configs/hardware/: measured and real ones by name, then hypothetical ones."""
    from lookupffn.profiling.hardware import load_machine, names

    machines = [load_machine(name) for name in names()]
    return sorted(machines, key=lambda machine: ("measured datasheet hypothetical".index(machine.kind), machine.name))


def _write_times(config: Mapping[str, Any], machine: Machine, threads: int) -> None:
    """The form of latency.json, for scripts/compare_runs.py --projected."""
    from lookupffn.report.runs import find_runs
    from lookupffn.storage import to_json, write_atomically

    if not config["output"]:
        raise UserError("runs= writes a file: name it by output=FILE.json")
    found = find_runs([Path(run) for run in _listed(config["runs"])])
    for left in found.left_out:
        logger.warning("%s is left out: %s", left.path, left.why)
    content = run_times(found.runs, machine, config["tokens"], config["precision"], threads)
    try:
        write_atomically(Path(config["output"]), to_json(content, indent=2))
    except OSError as error:
        raise UserError(f"cannot write {config['output']}: {error.strerror}") from None
    sys.stdout.write(f"{len(content['variants'])} feed-forwards projected to {machine.name}: {config['output']}\n")


def run_times(
    runs: Sequence[Run],
    machine: Machine,
    tokens: int = TOKENS,
    precision: str = "float32",
    threads: int | None = None,
) -> dict[str, Any]:
    """What the feed-forwards of finished runs would take on a machine, in the form of latency.json.

    Args:
        runs: whose.
        machine: where.
        tokens: of a call.
        precision: "float32", "bfloat16" or "int8".
        threads: all cores of the machine if None.
    """
    from lookupffn.report.inference_times import identity
    from lookupffn.storage import to_json

    threads = machine.cores if threads is None else threads
    variants: dict[str, dict[str, Any]] = {}
    for run in runs:
        what = identity(run)
        us, ratio = ffn_time(what, machine, tokens, precision, threads)
        variants[to_json(what)] = what | {"us_per_token": us, "ratio": ratio}
    return {
        "device_name": machine.name,
        "threads": threads,
        "tokens": tokens,
        "precision": precision,
        "projected": True,
        "variants": list(variants.values()),
    }


def ffn_time(
    what: Mapping[str, Any],
    machine: Machine,
    tokens: int = TOKENS,
    precision: str = "float32",
    threads: int | None = None,
) -> tuple[float, float]:
    """Microseconds a token of a feed-forward in all its layers, and how many times that GEMM takes.

    Args:
        what: as ``identity`` has it.
        machine, tokens, precision, threads: as for ``run_times``.
    """
    from lookupffn.profiling.project import any_seconds
    from lookupffn.profiling.timing import Point

    threads = machine.cores if threads is None else threads
    point = Point(what["hidden_size"], 1, 2, 1, 0, tokens, precision, threads)
    seconds = any_seconds(what["ffn"], what["ffn_options"], point, machine)
    gemm = any_seconds("gemm", {"intermediate_size": what["intermediate_size"]}, point, machine)
    return what["num_hidden_layers"] * 1e6 * seconds / tokens, gemm / seconds


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
