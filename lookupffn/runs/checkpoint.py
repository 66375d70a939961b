"""Checkpoints: folders step-NNNNNNNN, each a complete HuggingFace model folder plus the state of training.

A checkpoint is written under another name, flushed, and renamed, so that a folder of its name is complete;
checkpoint.json carries the SHA-256 of every other file, so that later damage is noticed. Nothing in it can run code:
weights are safetensors, the optimizer's state is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lookupffn.errors import UserError
from lookupffn.storage import altered, digests, finite, read_json, to_json, whole_folder, write_atomically

STATE_FILE = "training_state.pt"
METADATA_FILE = "checkpoint.json"
CARD = "README.md"  # where the hub looks for a model card
_SEAL = "sha256_of_this"
_NAME = re.compile(r"step-(\d{8,})")

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    metadata: dict[str, Any],
    keep: int,
    best: int | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Writes checkpoints/step-NNNNNNNN and removes the oldest beyond ``keep``, but not the best.

    Args:
        folder: the run's checkpoints folder.
        step: updates done.
        model: the unwrapped model.
        tokenizer: written beside it, so that the checkpoint is complete.
        state: tensors and plain values (optimizer, scaler).
        metadata: JSON values, readable without torch.
        keep: how many of the last checkpoints stay.
        best: the step of one more that stays; None for none.
        weights: what the model holds, where it is sharded; None to ask the model.

    Raises:
        UserError: the disk is full or cannot be written; earlier checkpoints are unchanged.
    """
    final = folder / f"step-{step:08d}"
    with whole_folder(final, "the checkpoint", kept=what_is_kept(folder)) as partial:
        save_model(partial, model, tokenizer, weights)
        torch.save(state, partial / STATE_FILE)
        document = {"step": step, **metadata, "sha256": digests(partial)}
        (partial / METADATA_FILE).write_text(sealed(document), encoding="utf-8")
    # a later step is a damaged checkpoint that this session did not resume from: it must not displace an intact one
    written = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    for old in written[:-keep]:
        if step_of(old) != best:
            shutil.rmtree(old, ignore_errors=True)
    return final


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """A HuggingFace folder with tokenizer: what from_pretrained reads; ``weights`` as for ``save_checkpoint``."""
    model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
    # a text cut with truncation=True then fits the model
    tokenizer.model_max_length = model.config.max_positions
    tokenizer.save_pretrained(folder)


def write_model(
    final: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, torch.Tensor] | None,
    *,
    card: str,
    kept: str,
) -> dict[str, str]:
    """A finished run's model folder with its model card, whole or not at all; returns the SHA-256 of its files."""
    with whole_folder(final, "the model", kept=kept) as partial:
        save_model(partial, model, tokenizer, weights)
        (partial / CARD).write_text(card, encoding="utf-8")
    return digests(final)


def amend_checkpoint(path: Path, metadata: dict[str, Any]) -> None:
    """Replaces the metadata of a checkpoint whose weights and optimizer state are still current.

    Raises:
        UserError: the disk is full or cannot be written; the checkpoint is as it was.
    """
    try:
        document = read_json(path / METADATA_FILE)
        write_atomically(path / METADATA_FILE, sealed({**document, **metadata}))
    except OSError as error:
        raise UserError(f"cannot write {path / METADATA_FILE}: {error.strerror or error}; it is as it was") from error


def what_is_kept(folder: Path) -> str:
    """Which checkpoint a run that stops now can resume from, as a sentence for its error."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return "No checkpoint had been written yet"
    return f"The last checkpoint ({checkpoints[-1].name}) is kept"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, whether whole or damaged."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """120 for step-00000120."""
    return int(path.name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its metadata; None where there are no checkpoints at all.

    A damaged one is passed over with a warning.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    checkpoints = list_checkpoints(folder)
    for path in reversed(checkpoints):
        try:
            return path, verify_checkpoint(path)
        except UserError as error:
            logger.warning("%s; trying the one before it", error)
    if checkpoints:
        raise UserError(f"{folder}: no checkpoint is whole; start again with overwrite=true or another output_dir")
    return None


def sealed(document: dict[str, Any]) -> str:
    """JSON text of metadata with its own digest in it: a run goes on from its numbers too."""
    document = finite({key: value for key, value in document.items() if key != _SEAL})
    return to_json({**document, _SEAL: _digest(document)}, indent=2)


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The metadata of a checkpoint whose files are all there and unchanged.

    Raises:
        UserError: a file is missing, unreadable or altered.
    """
    try:
        metadata = read_json(path / METADATA_FILE)
        if metadata.pop(_SEAL, None) != _digest(metadata):
            raise UserError(f"{METADATA_FILE} is not what was written")
        files, step = metadata["sha256"], metadata["step"]
        if not isinstance(step, int) or not isinstance(files, dict) or STATE_FILE not in files:
            raise ValueError("incomplete")
        if name := altered(path, files):
            raise UserError(f"{name} is not what was written")
    except UserError as error:
        raise UserError(f"damaged checkpoint {path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"damaged checkpoint {path}: {METADATA_FILE} or a file it lists is unreadable ({error})"
        ) from None
    return metadata


def load_state(path: Path) -> dict[str, Any]:
    """The state that ``save_checkpoint`` was given, its tensors on the host.

    Raises:
        UserError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        _check_archive(path / STATE_FILE)
        state = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a file that it did not write
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"damaged checkpoint {path}: {STATE_FILE} cannot be read ({reason})") from None
    if not isinstance(state, dict) or not {"optimizer", "scaler"} <= state.keys():
        raise UserError(f"damaged checkpoint {path}: {STATE_FILE} is not the state of a training")
    return state


def _check_archive(path: Path) -> None:
    """Raises a ValueError where an archive would unpack to more than itself; torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("it is compressed, which no training leaves")


def remove_partial(folder: Path) -> None:
    """Removes what a killed run left half-written."""
    for path in folder.glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
