"""Where metrics go besides metrics.jsonl. A tracker never stops a run: what fails in it is one warning.

Each tracker runs in a thread of its own, so that the run never waits for a slow or dead network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import netrc
import os
import queue
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Protocol
from urllib.parse import urlparse

from lookupffn.config.sections import TrackerSettings
from lookupffn.errors import UserError

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


class BackgroundTracker(ABC):
    """A tracker's library, called from a background thread."""

    name: str

    def __init__(
        self, folder: Path, settings: TrackerSettings, config: dict[str, Any], group: str, *, sweep_member: bool
    ) -> None:
        """Starts at once, and returns before the library is imported.

        Args:
            folder: the run's folder.
            settings: the tracker section.
            config: the whole config, as plain values.
            group: of runs that differ by their seed.
            sweep_member: whether this is one run of several.
        """
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.settings: Any = settings
        self._run: Any = None
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()
        self._calls.put(lambda: self._start(folder, config, group, sweep_member))

    @abstractmethod
    def _start(self, folder: Path, config: dict[str, Any], group: str, sweep_member: bool) -> None:
        """Sets ``self._run``."""

    @abstractmethod
    def _log(self, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""

    @abstractmethod
    def _end(self, summary: Mapping[str, Any] | None, failed: bool) -> None:
        """The end of the run."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """See ``Tracker``."""
        values = dict(metrics)
        self._calls.put(lambda: self._log(values))

    def finish(self, summary: Mapping[str, Any] | None, *, failed: bool = False) -> None:
        """See ``Tracker``."""
        self._calls.put(lambda: self._end(summary, failed))
        self._calls.put(None)
        timeout = FAILED_TIMEOUT_S if failed else FINISH_TIMEOUT_S
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning("%s is still not done after %g s; not waiting for it", self.name, timeout)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._failed:
                continue
            try:
                call()
            except Exception as error:
                # whatever a tracker raises, the run is worth more
                self._failed = True
                logger.warning(
                    "tracking with %s stopped (%s); the run goes on", self.name, " ".join(str(error).split())
                )


class WandbTracker(BackgroundTracker):
    """Weights & Biases; its files go in the run's folder."""

    name = "wandb"

    def _start(self, folder: Path, config: dict[str, Any], group: str, sweep_member: bool) -> None:
        import wandb

        mode = wandb_mode()
        # the service logs to stderr through its own handlers; the progress bar is enough
        os.environ.setdefault("WANDB_SILENT", "true")
        arguments = {
            "project": self.settings.project,
            "entity": self.settings.entity,
            "dir": str(folder),
            "id": run_id(folder, self.name),
            "resume": "allow",
            "name": folder.name,
            "group": group,
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
            mode = "offline"
            self._run = wandb.init(mode=mode, settings=settings, **arguments)
        if mode == "offline":
            files = self._run.settings.sync_dir
            logger.info("wandb is offline: what it tracks is in %s; to upload it: wandb sync %s", files, quote(files))
        self._run.define_metric("tokens")
        self._run.define_metric("training_flops")
        self._run.define_metric("*", step_metric="tokens")

    def _log(self, metrics: dict[str, Any]) -> None:
        self._run.log(metrics)

    def _end(self, summary: Mapping[str, Any] | None, failed: bool) -> None:
        if summary is not None:
            self._run.summary.update(dict(summary))
        self._run.finish(exit_code=1 if failed else 0)


class TrackioTracker(BackgroundTracker):
    """Trackio: a dashboard on this machine (or a HuggingFace Space), without an account.

    Its data base is in its own folder ($TRACKIO_DIR), where all runs of a project meet.
    """

    name = "trackio"

    def _start(self, folder: Path, config: dict[str, Any], group: str, sweep_member: bool) -> None:
        # it prints to where the run's own table goes
        with contextlib.redirect_stdout(io.StringIO()):
            import trackio

            self._run = trackio.init(
                project=self.settings.project,
                space_id=self.settings.space_id,
                # a run goes on under its name, so two folders of one name must differ
                name=f"{folder.name}-{run_id(folder, self.name)[:6]}",
                group=group,
                config=config,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        logger.info("dashboard: trackio show --project %s", self.settings.project)

    def _log(self, metrics: dict[str, Any]) -> None:
        step = metrics.pop("step")  # a name of trackio's own
        self._run.log(metrics, step=step)

    def _end(self, summary: Mapping[str, Any] | None, failed: bool) -> None:
        if summary is not None:
            numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
            self._run.log({f"summary/{key}": value for key, value in numbers.items()}, step=summary.get("steps"))
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


def start_tracker(
    folder: Path, settings: TrackerSettings, config: dict[str, Any], group: str, *, sweep_member: bool = False
) -> Tracker:
    """The tracker that the config names; the arguments are those of ``BackgroundTracker``.

    Raises:
        UserError: it is not installed.
    """
    check_tracker(settings)
    if settings.name == "none":
        return NoTracker()
    kind = {cls.name: cls for cls in (TrackioTracker, WandbTracker)}[settings.name]
    return kind(folder, settings, config, group, sweep_member=sweep_member)


def check_tracker(settings: TrackerSettings) -> None:
    """Raises a UserError for a tracker that is not installed."""
    name = settings.name
    if name not in ("none", *sys.modules) and importlib.util.find_spec(name) is None:
        raise UserError(f"tracker={name} is not installed: pip install {name}")


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


def run_id(folder: Path, tracker: str) -> str:
    """The tracker's id of the run, kept in the folder so that a resumed run goes on in the same chart."""
    path = folder / tracker / "run_id"
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    identifier = uuid.uuid4().hex[:12]
    path.parent.mkdir(exist_ok=True)
    path.write_text(identifier + "\n", encoding="utf-8")
    return identifier
