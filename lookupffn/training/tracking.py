"""Where metrics go besides metrics.jsonl. A tracker never stops a run: what fails in it is one warning.

Weights & Biases is driven from a thread of its own, so that a slow or dead network is never waited for.
"""

from __future__ import annotations

import logging
import netrc
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from lookupffn.errors import unknown_name

TRACKERS = ("none", "wandb")
# how long the end of a run waits for what is still to be sent
FINISH_TIMEOUT_S = 30.0
FAILED_TIMEOUT_S = 5.0
INIT_TIMEOUT_S = 20.0

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """What the loop needs of a tracker."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""

    def finish(self, summary: Mapping[str, Any] | None, *, failed: bool = False) -> None:
        """The end of the run; ``summary`` is None where it did not finish."""


class NoTracker:
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self, summary: Mapping[str, Any] | None, *, failed: bool = False) -> None:
        """Nothing."""


class WandbTracker:
    """Weights & Biases, from a background thread."""

    def __init__(self, folder: Path, config: dict[str, Any], *, sweep_member: bool) -> None:
        """Starts at once, and returns before wandb is imported.

        Args:
            folder: the run's folder; wandb's files go in it.
            config: the resolved config.
            sweep_member: whether this is one run of several.
        """
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._run: Any = None
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()
        self._calls.put(lambda: self._start(folder, config, sweep_member))

    def log(self, metrics: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        values = dict(metrics)
        self._calls.put(lambda: self._run.log(values))

    def finish(self, summary: Mapping[str, Any] | None, *, failed: bool = False) -> None:
        """See ``Tracker``."""

        def end() -> None:
            if summary is not None:
                self._run.summary.update(dict(summary))
            self._run.finish(exit_code=1 if failed else 0)

        self._calls.put(end)
        self._calls.put(None)
        timeout = FAILED_TIMEOUT_S if failed else FINISH_TIMEOUT_S
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("wandb is still not done after %g s; not waiting for it", timeout)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._failed:
                continue
            try:
                call()
            except Exception as error:
                # whatever a tracker raises, the run is worth more
                self._failed = True
                logger.warning("tracking with wandb stopped (%s); the run goes on", " ".join(str(error).split()))

    def _start(self, folder: Path, config: dict[str, Any], sweep_member: bool) -> None:
        import wandb

        section = config["tracker"]
        mode = wandb_mode()
        # the service logs to stderr through its own handlers; the progress bar is enough
        os.environ.setdefault("WANDB_SILENT", "true")
        arguments = {
            "project": section.get("project"),
            "entity": section.get("entity"),
            "dir": str(folder),
            "id": run_id(folder),
            "resume": "allow",
            "name": folder.name,
            "group": f"{config['data']['name']}-seed{config['seed']}",
            "job_type": "sweep" if sweep_member else "train",
            "tags": [config["ffn"]["name"], config["model"]["name"]],
            "config": config,
        }
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT_S)
        try:
            self._run = wandb.init(mode=mode, settings=settings, **arguments)
        except Exception as error:
            if mode == "offline":
                raise
            logger.warning("wandb cannot be reached (%s); tracking offline", " ".join(str(error).split())[:200])
            self._run = wandb.init(mode="offline", settings=settings, **arguments)
        self._run.define_metric("tokens")
        self._run.define_metric("training_flops")
        self._run.define_metric("*", step_metric="tokens")


def start_tracker(folder: Path, config: dict[str, Any], *, sweep_member: bool = False) -> Tracker:
    """The tracker that the config names.

    Raises:
        UserError: no such tracker.
    """
    check_tracker(config["tracker"])
    if config["tracker"]["name"] == "none":
        return NoTracker()
    return WandbTracker(folder, config, sweep_member=sweep_member)


def check_tracker(section: Mapping[str, Any]) -> None:
    """Raises a UserError for a tracker that does not exist."""
    if section.get("name") not in TRACKERS:
        raise unknown_name("tracker", section.get("name"), TRACKERS)


def wandb_mode() -> str:
    """What WANDB_MODE says; else online with credentials (key or netrc), offline without."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "online" if netrc.netrc(file).authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"


def run_id(folder: Path) -> str:
    """wandb's id of the run, kept in the folder so that a resumed run goes on in the same chart."""
    path = folder / "wandb" / "run_id"
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    identifier = uuid.uuid4().hex[:12]
    path.parent.mkdir(exist_ok=True)
    path.write_text(identifier + "\n", encoding="utf-8")
    return identifier
