"""Where a model is: in a run folder, one of its checkpoints, or any HuggingFace folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookupffn.errors import UserError
from lookupffn.runs.checkpoint import METADATA_FILE, newest_checkpoint, verify_checkpoint
from lookupffn.runs.names import CHECKPOINTS, CONFIG, MODEL, SUMMARY
from lookupffn.runs.records import read_config, read_summary
from lookupffn.storage import altered


@dataclass(frozen=True)
class ModelSource:
    """Where a model was found.

    Attributes:
        folder: the HuggingFace folder.
        run_config: config.yaml of the run it belongs to; None for a folder that belongs to no run.
        record: what the run noted beside it (summary.json or checkpoint.json); empty where it noted nothing.
        run: the run's folder; None as for ``run_config``.
    """

    folder: Path
    run_config: dict[str, Any] | None
    record: dict[str, Any]
    run: Path | None = None


def find_model(path: str | Path) -> ModelSource:
    """The model in a run folder (finished: model/; running: its newest whole checkpoint) or HuggingFace folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"no folder {path}: give a run folder such as outputs/..., or a HuggingFace model folder")
    if (path / CONFIG).exists() or (path / CHECKPOINTS).is_dir():
        run_config = read_config(path)
        if (path / SUMMARY).exists():
            return ModelSource(path / MODEL, run_config, finished_record(path), path)
        newest = newest_checkpoint(path / CHECKPOINTS)
        if newest is None:
            raise UserError(f"{path} has no checkpoint yet: wait for its first, or give another folder")
        return ModelSource(newest[0], run_config, newest[1], path)
    if not (path / "config.json").exists():
        raise UserError(f"{path} is neither a run folder (no {CONFIG}) nor a model folder (no config.json)")
    if (path / METADATA_FILE).exists():
        record, run = verify_checkpoint(path), path.resolve().parent.parent
    else:
        run = path.resolve().parent
        record = finished_record(run) if path.name == MODEL and (run / SUMMARY).exists() else {}
    if not record or not (run / CONFIG).exists():
        return ModelSource(path, None, record)
    return ModelSource(path, read_config(run), record, run)


def finished_record(run: Path) -> dict[str, Any]:
    """summary.json of a finished run whose model/ is what was written.

    Raises:
        UserError: it is not, or summary.json is damaged.
    """
    record = read_summary(run)
    files = record.get("model_sha256", {})  # runs of earlier versions noted nothing
    again = f"its last checkpoint is in {run / CHECKPOINTS}"
    try:
        name = altered(run / MODEL, files)
    except (OSError, AttributeError, UserError) as error:
        raise UserError(f"damaged model {run / MODEL}: a file of it cannot be read ({error}); {again}") from None
    if name:
        raise UserError(f"damaged model {run / MODEL}: {name} is not what was written; {again}")
    return record
