"""From run folders to a folder of tables and plots, which is there whole or not at all.

comparison/                    with one group of comparable runs; with several, one such folder a group inside it
  table.md, table.csv
  perplexity-flops.png, .svg   and the other plots
  comparison.json              which runs are in it, what was left out, and which files belong to it
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.report.comparison_table import csv_text, markdown, overview
from lookupffn.report.figures import Comparison, compare
from lookupffn.report.groups import Group, comparable_groups, differences, require_one_group
from lookupffn.report.latency import read_latencies
from lookupffn.report.plots import draw, styles
from lookupffn.report.runs import LeftOut, find_runs, read_json

MANIFEST = "comparison.json"
SORTS = ("flops", "perplexity")


def compare_runs(
    paths: Sequence[Path],
    output: Path,
    *,
    latency: Path | None = None,
    strict: bool = False,
    sort: str = "flops",
) -> str:
    """Compares the finished runs in some folders.

    Args:
        paths: run folders, or folders that hold run folders.
        output: the folder to write; an earlier comparison in it is replaced.
        latency: a latency.json of scripts/measure_latency.py.
        strict: refuse runs that may not be compared instead of splitting them into groups.
        sort: order of the tables, one of ``SORTS``.

    Returns:
        What to tell the user.

    Raises:
        UserError: there is nothing to compare, a file is damaged, the output is somebody else's, or ``strict``.
    """
    try:
        earlier = _earlier_files(output)
    except OSError as error:
        raise UserError(f"cannot read {output}: {error.strerror}") from None
    runs, left_out = find_runs(paths)
    groups, repeats = comparable_groups(runs)
    if strict:
        require_one_group(groups)
    latencies = None if latency is None else read_latencies(latency)
    comparisons = [compare(group, latencies, sort=sort) for group in groups]
    left_out = sorted([*left_out, *repeats], key=lambda left: str(left.path))
    place = Path(os.path.abspath(output))
    staged = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        _write(staged, comparisons, groups, left_out)
        _replace(place, staged, earlier)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return _report(output, comparisons, groups, left_out)


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
        raise UserError(f"{output} holds something that is no comparison: give another --output")
    files = read_json(output / MANIFEST).get("files")
    if not isinstance(files, list) or not all(isinstance(file, str) and _inside(file) for file in files):
        raise UserError(f"damaged file {output / MANIFEST}: give another --output, or remove the folder")
    return files


def _inside(file: str) -> bool:
    """Whether a relative path stays where it is put: the list is a file's word for what may be deleted."""
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def _write(
    folder: Path, comparisons: Sequence[Comparison], groups: Sequence[Group], left_out: Sequence[LeftOut]
) -> None:
    looks = styles([variant.ffn for group in groups for variant in group.variants])
    files = []
    for comparison in comparisons:
        name = comparison.group.name if len(comparisons) > 1 else "."
        (folder / name).mkdir(parents=True)
        (folder / name / "table.md").write_text(markdown(comparison, groups, left_out), encoding="utf-8")
        (folder / name / "table.csv").write_text(csv_text(comparison), encoding="utf-8")
        drawn = draw(comparison, folder / name, looks)
        files += [(Path(name) / file).as_posix() for file in ("table.md", "table.csv", *drawn)]
    manifest = {
        "groups": [_described(group) for group in groups],
        "left_out": {str(left.path): left.why for left in left_out},
        "files": sorted(files),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


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


def _report(
    output: Path, comparisons: Sequence[Comparison], groups: Sequence[Group], left_out: Sequence[LeftOut]
) -> str:
    text = ""
    if len(groups) > 1:
        text += f"{len(groups)} groups that cannot be compared with each other: they differ in {differences(groups)}\n"
    for comparison in comparisons:
        folder = output / comparison.group.name if len(comparisons) > 1 else output
        text += f"\n{comparison.group.name}: {folder}\n{overview(comparison)}"
        text += "".join(f"warning: {warning}\n" for warning in comparison.warnings)
    if left_out:
        text += "\nleft out:\n" + "".join(f"  {left.path}: {left.why}\n" for left in left_out)
    return text.lstrip("\n")
