"""What every tracker does: it begins before the first epoch or not at all, and never ends a training."""

from __future__ import annotations

import json
import math
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from cellvision.errors import CellvisionError, ConfigError, MissingExtraError, explain

RETRY_S = 60.0
MOST_ROWS = 10_000
MOST_REFUSED = 3
"""Rows in a row, after which a server counts as away."""
KEPT = ("*.json", "*.csv", "*.png")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one moment.

    Attributes:
        scores: finite numbers by name, as "val/loss".
        step: optimizer steps done.
        time_ms: since 1970.
    """

    scores: dict[str, float]
    step: int
    time_ms: int


class Tracker(Logger):
    """A logger of Lightning that tells a server of a run: settings, scores, and in the end files.

    What the server does not take while a net is trained is kept and sent later, at most once in RETRY_S, so that a
    server that is away costs little time and no score; of more than MOST_ROWS rows the oldest are dropped.

    Args:
        folder: of the run; its ID is kept there, so that a resumed run goes on with the same one.
        package: that has to be installed, and the extra that brings it.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: from ``begin``, where the server cannot be used.
    """

    def __init__(self, *, folder: str | Path, package: str) -> None:
        super().__init__()
        if find_spec(package) is None:
            raise MissingExtraError(package, extra=package)
        self.folder, self.package = Path(folder), package
        self.run_id: str | None = None
        self._rows: deque[Row] = deque(maxlen=MOST_ROWS)
        self._next_try, self._is_away = 0.0, False

    @property
    def name(self) -> str:
        """Of the package."""
        return self.package

    @property
    def version(self) -> str | None:
        """ID of the run; None before it begins."""
        return self.run_id

    def begin(self, record: Mapping[str, Any]) -> None:
        """Open the run, and tell what ``run.json`` says of it.

        Args:
            record: content of that file.
        """
        try:
            self.run_id = self._open(self._read_earlier(), record)
        except CellvisionError:
            raise
        except Exception as error:
            got = f"{self.package} cannot begin a run ({_tell(error)})"
            raise ConfigError(explain(got=got, need="a server that answers", hint="logger=default")) from error
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.package}.json").write_text(json.dumps({"run_id": self.run_id}) + "\n", encoding="utf-8")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``begin`` has told all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send scores, or keep them for later; those that are not finite stay in the files of the run."""
        scores = {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}
        self._rows.append(Row(scores=scores, step=step or 0, time_ms=int(time.time() * 1000)))
        self._deliver()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is left, and say how a part of the run ended: "success" or "failed"."""
        if self.run_id is not None:
            self._deliver(at_once=True)
            self._attempt(lambda: self._close(failed=status == "failed"))
            if self._rows:
                left = f"{len(self._rows)} rows of scores were not taken; history.csv has them"
                print(f"warning: {self.package}: {left}", file=sys.stderr)

    def keep(self, files: Sequence[Path]) -> None:
        """Send the files of a finished run, which lie in its folder."""
        if self.run_id is not None:
            self._deliver(at_once=True)
            self._attempt(lambda: self._upload(files))

    def _deliver(self, *, at_once: bool = False) -> None:
        if self.run_id is None or not self._rows or (time.monotonic() < self._next_try and not at_once):
            return
        rows = list(self._rows)
        if self._attempt(lambda: self._send(rows)):
            self._rows.clear()
            self._say_it_is_back()
        elif at_once:
            self._deliver_singly()
        else:
            self._next_try = time.monotonic() + RETRY_S

    def _deliver_singly(self) -> None:
        """One row that a server refuses must not hold back the others; after a few in a row it is the server."""
        refused, in_a_row = [], 0
        while self._rows and in_a_row < MOST_REFUSED:
            row = self._rows.popleft()
            taken = self._attempt(partial(self._send, [row]))
            refused += [] if taken else [row]
            in_a_row = 0 if taken else in_a_row + 1
        self._rows.extendleft(reversed(refused))

    def _say_it_is_back(self) -> None:
        if self._is_away:
            print(f"{self.package} answers again")
            self._is_away = False

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Whether the server took it; the first time that it does not is said."""
        try:
            call()
        except Exception as error:
            if not self._is_away:
                text = f"warning: {self.package} does not take what it is told ({_tell(error)}); the run goes on"
                print(text, file=sys.stderr)
            self._is_away = True
            return False
        return True

    def _read_earlier(self) -> str | None:
        """ID of the run that is resumed."""
        path = self.folder / f"{self.package}.json"
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["run_id"])
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or half written by a run that was killed
            return None

    @abstractmethod
    def _open(self, earlier: str | None, record: Mapping[str, Any]) -> str:
        """Begin a run or go on with an earlier one, and tell its settings; its ID."""

    @abstractmethod
    def _send(self, rows: Sequence[Row]) -> None:
        """Tell scores."""

    @abstractmethod
    def _upload(self, files: Sequence[Path]) -> None:
        """Hand over files; the run needs nothing more after them."""

    @abstractmethod
    def _close(self, *, failed: bool) -> None:
        """Say that a part of the run is over; scores and files of a part that did not fail can still follow."""


def begin_tracking(trainer: Trainer, record: Path) -> None:
    """Have all trackers of a run begin, with what is in its ``run.json``."""
    for logger in trainer.loggers:
        if isinstance(logger, Tracker):
            logger.begin(json.loads(record.read_text(encoding="utf-8")))


def keep_files(trainer: Trainer, folder: Path) -> None:
    """Hand the record, tables and pictures of a finished run to its trackers, of the validation pictures the last."""
    trackers = [logger for logger in trainer.loggers if isinstance(logger, Tracker)]
    if trackers:
        own = {f"{tracker.package}.json" for tracker in trackers}
        files = sorted(path for kind in KEPT for path in folder.glob(kind) if path.name not in own)
        files += sorted((folder / "pictures").glob("*.png"))[-1:]
        for tracker in trackers:
            tracker.keep(files)


def flatten(settings: Any, path: str = "") -> dict[str, str]:
    """Every setting as text, by its dotted name.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "widths": [4, 8], "mixing": None})
        {'optim.lr': '0.1', 'widths': '[4, 8]', 'mixing': 'null'}
    """
    if isinstance(settings, Mapping) and settings:
        parts = (flatten(value, f"{path}.{key}".lstrip(".")) for key, value in settings.items())
        return {name: text for part in parts for name, text in part.items()}
    return {path: settings if isinstance(settings, str) else json.dumps(settings, default=str)}


def describe_code(record: Mapping[str, Any]) -> dict[str, str]:
    """Which code and which data made a run, from its record."""
    git = record.get("git", {})
    told = {"data_fingerprint": record.get("data", {}).get("fingerprint")}
    told |= {"git_commit": git.get("commit"), "git_changed": str(git["changed"]).lower() if "changed" in git else None}
    told["net"] = record.get("net", {}).get("config", {}).get("name")
    return {name: text for name, text in told.items() if text is not None}


def _tell(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
