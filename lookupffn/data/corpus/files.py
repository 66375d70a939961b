"""Which files a path, a glob or a list of them names, and whether they have changed."""

import fnmatch
import glob
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lookupffn import storage
from lookupffn.errors import UserError

logger = logging.getLogger(__name__)

COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (*(kind + packed for kind in (".txt", ".jsonl", ".json") for packed in ("", *COMPRESSIONS)), ".parquet")
_SUFFIXES_TEXT = ".txt, .jsonl, .json (each also .gz or .zst) or .parquet"


def suffix_of(path: Path) -> str | None:
    """Which of ``SUFFIXES`` a file name ends in, compression included."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def find_files(patterns: object, option: str) -> list[Path]:
    """The files that a path, a glob or a list of them names, sorted, each once however many names or links lead to it.

    Raises:
        UserError: nothing matches, or a match is a folder, a pipe, a device or of an unknown suffix.
    """
    if not isinstance(patterns, str | os.PathLike | Iterable):
        raise UserError(f"{option} is {patterns!r}: it must be a path, a glob or a list of them")
    given = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    if not given:
        raise UserError(f"{option} is an empty list: name files or globs of {_SUFFIXES_TEXT}")
    found: dict[tuple[int, int], Path] = {}
    for pattern in given:
        named = Path(os.path.expanduser(str(pattern)))
        if named.exists():
            matches = [named]
        else:
            parts = named.relative_to(named.anchor).parts
            matches = [path for path in _expand(Path(named.anchor), parts) if not path.is_dir()]
        if not matches:
            kind = "no file matches" if glob.has_magic(str(named)) else "no such file:"
            raise UserError(f"{option}: {kind} {pattern} (looked from {Path.cwd()}): check the path")
        for path in matches:
            if path.is_dir():
                raise UserError(f"{option}: {path} is a folder: name its files, for example {path / '*.jsonl'}")
            if suffix_of(path) is None:
                raise UserError(f"{option}: cannot read {path}: the suffix must be one of {_SUFFIXES_TEXT}")
            try:
                storage.check_ordinary(path)
                status = path.stat()
            except OSError as error:
                raise UserError(f"{option}: cannot read {path}: {error.strerror or error}") from error
            found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def _expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What a pattern, split at its separators, names below a folder.

    Unlike ``glob``, a part that exists as it is written is no pattern, so that folders may be called "[v1] books", and
    ``**`` enters each folder once, whatever links lead back to it.
    """
    if not parts:
        yield folder
        return
    head, rest = parts[0], parts[1:]
    if head == "**":
        for inner in _folders(folder, set()):
            yield from _expand(inner, rest or ("*",))
    elif os.path.lexists(folder / head):
        yield from _expand(folder / head, rest)
    elif glob.has_magic(head):
        for name in _names(folder):
            hidden = name.startswith(".") and not head.startswith(".")
            if not hidden and fnmatch.fnmatchcase(name, head) and (not rest or (folder / name).is_dir()):
                yield from _expand(folder / name, rest)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _folders(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """A folder and all below it that are not hidden, each once."""
    try:
        status = folder.stat()
    except OSError:
        return
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    yield folder
    for name in _names(folder):
        if not name.startswith(".") and (folder / name).is_dir():
            yield from _folders(folder / name, seen)


def content_digests(paths: list[Path], cache_dir: Path) -> list[str]:
    """SHA-256 of each file with its suffix, remembered by (path, size, time of change) so that it is computed once.

    Raises:
        UserError: a file cannot be read.
    """
    memory = cache_dir / "file_digests.json"
    known = _remembered(memory)
    keys: list[str] = []
    new: dict[str, tuple[str, Path, int]] = {}
    path = None
    try:
        for path in paths:
            status, place = path.stat(), str(path.resolve())
            keys.append(f"{place}|{status.st_size}|{status.st_mtime_ns}")
            if keys[-1] not in known:
                new[keys[-1]] = place, path, status.st_size
        earlier: dict[str, set[str]] = {}
        if new:
            for key, digest in known.items():
                earlier.setdefault(key.rsplit("|", 2)[0], set()).add(digest)
        with storage.digest_bar(sum(size for _, _, size in new.values())) as bar:
            for key, (place, path, _) in new.items():
                known[key] = storage.file_digest(path, bar.update)
                if known[key] not in earlier.get(place, {known[key]}):
                    logger.warning("%s has changed since it was last read: it is prepared anew", path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if new:
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            storage.write_atomically(memory, json.dumps(known, indent=0))
        except OSError as error:
            logger.debug("file digests not remembered: %s", error)
    return [f"{suffix_of(path)}:{known[key]}" for path, key in zip(paths, keys, strict=True)]


def _remembered(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    items = known.items() if isinstance(known, dict) else ()
    return {key: digest for key, digest in items if isinstance(digest, str)}
