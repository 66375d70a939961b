"""Loading a tokenizer that somebody else wrote without letting it take the machine's time or memory, and its ids.

tokenizer.json holds programs: normalizers that rewrite the text, regular expressions, tables for Rust code that panics
where they are wrong. Its files are looked at first, then it is tried in a child process with limits.

A model asks of its tokenizer how many rows its embedding has, and whether padding has an id of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from lookupffn.errors import UserError

TOKENIZER_FILE = "tokenizer.json"
_READ = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_LARGEST = 2**28  # bytes of a file; vocabularies of a quarter of a million entries take 17 million
_MOST_GROWTH = 1000  # of a text by its normalizers; published ones at most triple it
_CPU_S, _MEMORY = 60, 4 * 2**30
_SAMPLE = "The quick (brown) fox, 3.14 naïve Ünïcödé: 日本語 и русский\tﬁ ½ 🙂\u200d\u0301 <mask> " + "".join(
    map(chr, range(32, 127))
)
# every token that stands in text or is predicted
_ROLES = ("bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
# as many ids may be missing as there are entries, and some more
_SPARE = 1024


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, or by its name on the hub.

    Raises:
        UserError: it cannot be loaded, is not what a tokenizer should be, or takes too much time or memory.
    """
    local = isinstance(source, Path)
    if isinstance(source, Path):
        check_files(source)
    problem = _failure_in_child(_try, str(source), local, cpu_s=_CPU_S, memory=_MEMORY)
    if problem:
        raise UserError(f"cannot load the tokenizer {source} ({problem})")
    if not local:
        check_growth(_cached_file(str(source)), str(source))
    with _errors_named(source):
        return _load(str(source), local)


def check_files(folder: Path) -> None:
    """Looks at a folder's files without opening what may block, and at how much its normalizers make of a text.

    Raises:
        UserError: a file is none, or too large, or the normalizers multiply the text.
    """
    try:
        for path in sorted(folder.iterdir()):
            if path.suffix not in _READ:
                continue
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"cannot load the tokenizer {folder}: {path.name} is not an ordinary file")
            if status.st_size > _LARGEST:
                raise UserError(f"cannot load the tokenizer {folder}: {path.name} has {status.st_size:,} bytes")
    except OSError as error:
        raise UserError(f"cannot load the tokenizer {folder}: {error.strerror or error}") from None
    check_growth(folder / TOKENIZER_FILE, str(folder))


def check_growth(path: Path | None, name: str) -> None:
    """
    Raises:
        UserError: tokenizer.json is damaged, or its normalizers make a text more than ``_MOST_GROWTH`` times as long.
    """
    if path is None or not path.exists():
        return
    try:
        content = json.loads(path.read_bytes())
        growth = _growth(content.get("normalizer"))
    except (OSError, ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"cannot load the tokenizer {name}: {TOKENIZER_FILE} is damaged ({reason})") from None
    if growth > _MOST_GROWTH:
        raise UserError(
            f"cannot load the tokenizer {name}: its normalizers make a text {growth:.0e} times as long, more than any "
            "tokenizer in use: get it from where it was published"
        )


def _growth(normalizer: Mapping[str, Any] | None) -> float:
    """The most that a normalizer can multiply the length of a long text by, its replacements alone considered."""
    if normalizer is None:
        return 1.0
    if normalizer["type"] == "Sequence":
        total = 1.0
        for part in normalizer["normalizers"]:
            total *= _growth(part)
        return total
    if normalizer["type"] != "Replace":
        return 1.0
    pattern, content = normalizer["pattern"], len(normalizer["content"])
    # a regular expression may match between all characters
    return max(1.0, content / max(1, len(pattern["String"]))) if "String" in pattern else 1.0 + content


def _load(source: str, local: bool) -> PreTrainedTokenizerBase:
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    length = tokenizer.model_max_length
    # transformers takes anything and fails when a text is cut
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
        raise UserError(f"model_max_length of tokenizer_config.json must be a number, not {length!r}")
    return tokenizer


def _try(source: str, local: bool) -> None:
    _load(source, local).tokenize(_SAMPLE)


def _cached_file(name: str) -> Path | None:
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name, TOKENIZER_FILE)
    return Path(found) if isinstance(found, str) else None


@contextlib.contextmanager
def _errors_named(source: Path | str) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the Rust code is no Exception
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"cannot load the tokenizer {source} ({reason})") from None


def _failure_in_child(function: Callable[..., object], *arguments: object, cpu_s: int, memory: int) -> str | None:
    """Try a call in a child process with limits: why it fails, or None where it returns.

    A crash, a panic of Rust code and endless work end the child alone, and what it prints is dropped. Where processes
    cannot be forked (Windows, a daemonic process) nothing is tried.

    Args:
        cpu_s: processor seconds that it may take.
        memory: bytes that it may take beyond what this process has.
    """
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return None
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = context.Process(target=_with_limits, args=(function, arguments, sender, cpu_s, memory))
        child.start()
    sender.close()
    try:
        reason = receiver.recv()
    except EOFError:
        child.join()
        slow = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        reason = f"it takes more than {cpu_s} s" if slow else "it crashes, or takes too much memory"
    finally:
        receiver.close()
        child.join()
    return reason


def _with_limits(
    function: Callable[..., object], arguments: tuple, sender: Connection, cpu_s: int, memory: int
) -> None:
    import resource

    faulthandler.disable()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    now = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(now.ru_utime + now.ru_stime) + cpu_s
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError, ValueError):  # the limits may be lower already
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        function(*arguments)
        reason = None
    except BaseException as error:  # a panic of Rust code is no Exception
        reason = " ".join(str(error).split())[:160] or type(error).__name__
    sender.send(reason)


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embedding, so that every id has one: more than the entries where ids have gaps.

    Raises:
        UserError: the ids are so sparse that most rows would be unused.
    """
    entries = len(tokenizer)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= 2 * entries + _SPARE:
        raise UserError(
            f"the tokenizer has {entries} entries but an id of {largest}: the model would need a row for every id up "
            "to it; number the entries without large gaps"
        )
    return max(entries, largest + 1)


def unused_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids below ``vocabulary_size`` that belong to no entry, ascending."""
    used = set(tokenizer.get_vocab().values())
    return [number for number in range(vocabulary_size(tokenizer)) if number not in used]


def own_pad_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of padding; None where there is none, or where it is also the id of a token that stands in text."""
    pad = tokenizer.pad_token_id
    shared = pad in [getattr(tokenizer, role, None) for role in _ROLES]
    return None if pad is None or shared else pad
