"""From run folders to a folder of tables and plots, which is there whole or not at all.

comparison/                    with one group of comparable runs; with several, one such folder a group inside it
  table.md, table.csv
  perplexity-flops.png, .svg, .pdf and the other plots
  horizons/                    where groups differ in nothing but their tokens
  downstream/                  where there are fine-tuning runs
  comparison.json              which runs are in it, what was left out, and which files belong to it
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError, unknown_name
from lookupffn.report import downstream, horizons
from lookupffn.report.comparison import Comparison, compare
from lookupffn.report.downstream import Score, scores
from lookupffn.report.fine_tuned import read_fine_tuned
from lookupffn.report.groups import Group, comparable_groups, differences, require_one_group
from lookupffn.report.inference_times import InferenceTimes, read_times
from lookupffn.report.runs import LeftOut, find_runs
from lookupffn.report.tables import csv_text, markdown, overview
from lookupffn.runs.names import SUMMARY
from lookupffn.storage import read_json

MANIFEST = "comparison.json"
FOLDER = "comparison"
SORTS = ("flops", "perplexity")


@dataclass(frozen=True)
class Report:
    """What some run folders say.

    Attributes:
        comparisons: a group each.
        ladders: what groups say together that differ in their tokens alone.
        scores: of fine-tuning runs.
        left_out: folders that are in no comparison.
    """

    comparisons: tuple[Comparison, ...]
    ladders: tuple[horizons.Ladder, ...]
    scores: tuple[Score, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def groups(self) -> list[Group]:
        """The groups of comparable runs."""
        return [comparison.group for comparison in self.comparisons]


def compare_runs(
    paths: Sequence[Path],
    output: Path | None = None,
    *,
    latency: Path | None = None,
    projected: Sequence[InferenceTimes] = (),
    strict: bool = False,
    sort: str = "flops",
    swept: Sequence[str] = (),
    plots: bool = True,
) -> str:
    """Compares the finished runs in some folders.

    Args:
        paths: run folders, or folders that hold run folders.
        output: the folder to write; an earlier comparison in it is replaced. None: ``default_output``.
        latency: a latency.json of scripts/measure_latency.py.
        projected: times on machines that one does not have.
        strict: refuse runs that may not be compared instead of splitting them into groups.
        sort: order of the tables, one of ``SORTS``.
        swept: settings to draw perplexity against, as "ffn.num_tables".
        plots: whether to draw.

    Returns:
        What to tell the user.

    Raises:
        UserError: there is nothing to compare, a file is damaged, the output is somebody else's, or ``strict``.
    """
    output = default_output(paths) if output is None else output
    try:
        earlier = _earlier_files(output)
    except OSError as error:
        raise UserError(f"cannot read {output}: {error.strerror}") from None
    report = read_report(paths, latency=latency, projected=projected, strict=strict, sort=sort)
    _check_swept(report, swept)
    place = Path(os.path.abspath(output))
    staged = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        _write(staged, report, swept, plots)
        _replace(place, staged, earlier)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _told(output, report)


def read_report(
    paths: Sequence[Path],
    *,
    latency: Path | None = None,
    projected: Sequence[InferenceTimes] = (),
    strict: bool = False,
    sort: str = "flops",
) -> Report:
    """What ``compare_runs`` writes, as figures; arguments and errors are the same."""
    found = find_runs(paths)
    groups, repeats = comparable_groups(found.runs) if found.runs else ([], [])
    if strict:
        require_one_group(groups)
    measured = None if latency is None else read_times(latency)
    comparisons = tuple(compare(group, measured, projected, sort=sort) for group in groups)
    tuned, unreadable = read_fine_tuned(found.fine_tuned, found.runs)
    scored, repeated = scores(tuned, measured)
    left_out = sorted([*found.left_out, *repeats, *unreadable, *repeated], key=lambda left: str(left.path))
    return Report(comparisons, tuple(horizons.ladders(comparisons)), tuple(scored), tuple(left_out))


def default_output(paths: Sequence[Path]) -> Path:
    """comparison/ beside the runs: in the folder that holds them all.

    Raises:
        UserError: the folders have nothing in common.
    """
    tops = [path.parent if (path / SUMMARY).exists() else path for path in paths]
    if len(tops) == 1:
        return tops[0] / FOLDER
    common = Path(os.path.commonpath([os.path.abspath(top) for top in tops]))
    if common == Path(common.anchor):
        raise UserError(f"{', '.join(map(str, paths))} have no folder in common to write beside: give --output")
    return (common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common) / FOLDER


def _check_swept(report: Report, swept: Sequence[str]) -> None:
    runs = [run for group in report.groups for run in group.runs]
    valid = {name for run in runs for name in run.settings}
    for setting in swept:
        if setting not in valid:
            raise unknown_name("setting of these runs", setting, valid)


def tables(report: Report) -> dict[str, str]:
    """The text files of a comparison by their relative paths."""
    several = len(report.comparisons) > 1
    texts = {}
    for comparison in report.comparisons:
        prefix = f"{comparison.group.name}/" if several else ""
        texts[f"{prefix}table.md"] = markdown(comparison, report.groups, report.left_out)
        texts[f"{prefix}table.csv"] = csv_text(comparison)
    for name, ladder in _named_ladders(report).items():
        texts[f"{name}/table.md"] = horizons.markdown(ladder)
        texts[f"{name}/table.csv"] = horizons.csv_text(ladder)
    if report.scores:
        texts["downstream/table.md"] = downstream.markdown(report.scores, report.left_out)
        texts["downstream/table.csv"] = downstream.csv_text(report.scores)
    return texts


def _named_ladders(report: Report) -> Mapping[str, horizons.Ladder]:
    if len(report.ladders) == 1:
        return {"horizons": report.ladders[0]}
    return {f"horizons-{number}": ladder for number, ladder in enumerate(report.ladders, start=1)}


def _earlier_files(output: Path) -> list[str]:
    """The files of the comparison that stands in the output folder.

    Raises:
        UserError: what stands there is something else.
    """
    if not output.exists():
        return []
    if output.is_dir() and not any(output.iterdir()):
        return []
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} holds files that no comparison wrote: give another --output")
    files = read_json(output / MANIFEST).get("files")
    if not isinstance(files, list) or not all(isinstance(file, str) and _inside(file) for file in files):
        raise UserError(f"damaged file {output / MANIFEST}: give another --output, or remove the folder")
    return files


def _inside(file: str) -> bool:
    """Whether a relative path stays where it is put: the list is a file's word for what may be deleted."""
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def _write(folder: Path, report: Report, swept: Sequence[str], plots: bool) -> None:
    files = []
    folder.mkdir(parents=True)
    for name, text in tables(report).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", errors="replace")
        files.append(name)
    files += _draw(folder, report, swept) if plots else []
    manifest = {
        "groups": [_described(group) for group in report.groups],
        "left_out": {str(left.path): left.why for left in report.left_out},
        "files": sorted(files),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _draw(folder: Path, report: Report, swept: Sequence[str]) -> list[str]:
    # matplotlib takes a second, which a refused command need not wait for
    from lookupffn.report.plots import draw, draw_ladder, draw_scores

    files = []
    for comparison in report.comparisons:
        name = comparison.group.name if len(report.comparisons) > 1 else "."
        files += [(Path(name) / file).as_posix() for file in draw(comparison, folder / name, swept)]
    for name, drawn in _named_ladders(report).items():
        files += [f"{name}/{file}" for file in draw_ladder(drawn, folder / name)]
    if report.scores:
        files += [f"downstream/{file}" for file in draw_scores(report.scores, folder / "downstream")]
    return files


def _described(group: Group) -> dict[str, Any]:
    variants = {variant.label: [str(run.path) for run in variant.runs] for variant in group.variants}
    return {"name": group.name, "conditions": dict(sorted(group.conditions.items())), "variants": variants}


def _replace(output: Path, staged: Path, earlier: Sequence[str]) -> None:
    """Moves what was written into its place; only files that an earlier comparison wrote give way."""
    files = json.loads((staged / MANIFEST).read_text(encoding="utf-8"))["files"]
    output.mkdir(parents=True, exist_ok=True)
    # an interruption leaves a list that names whatever of ours is there, so that the command can be repeated
    both = staged / f"{MANIFEST}.both"
    both.write_text(json.dumps({"files": sorted({*earlier, *files})}) + "\n", encoding="utf-8")
    os.replace(both, output / MANIFEST)
    for file in sorted(set(earlier) - set(files)):
        (output / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            (output / file).parent.rmdir()
    for file in files:
        (output / file).parent.mkdir(exist_ok=True)
        os.replace(staged / file, output / file)
    os.replace(staged / MANIFEST, output / MANIFEST)


def _told(output: Path, report: Report) -> str:
    groups, text = report.groups, ""
    if len(groups) > 1:
        text += f"{len(groups)} groups that cannot be compared with each other: they differ in {differences(groups)}\n"
    for comparison in report.comparisons:
        folder = output / comparison.group.name if len(groups) > 1 else output
        text += f"\n{comparison.group.name}: {folder}\n{overview(comparison)}"
        text += "".join(f"warning: {warning}\n" for warning in comparison.warnings)
    for name in _named_ladders(report):
        text += f"\nhorizons together: {output / name}\n"
    if report.scores:
        text += f"\ndownstream scores: {output / 'downstream'}\n{downstream.overview(report.scores)}"
    if report.left_out:
        text += "\nleft out:\n" + "".join(f"  {left.path}: {left.why}\n" for left in report.left_out)
    return text.lstrip("\n")
