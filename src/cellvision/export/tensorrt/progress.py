"""What a builder says while it works: how far it is, and what went wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Tell = Callable[[str], Any]

_PLACE = re.compile(r"\s*\(?\bIn \w+ at /\S+\)?|^\[\S+\]\s*|^\S+::\S+: ")


class Journal:
    """Messages of one build, errors first of all.

    Attributes:
        errors, warnings: in the library's words, in order, each once.
        stopped: what a listener raised; it ends the build, and is to be raised again afterwards.
    """

    def __init__(self, tell: Tell | None) -> None:
        """Hand steps on to ``tell``."""
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.stopped: BaseException | None = None
        self._tell = tell
        self._top: str | None = None

    def add(self, text: str, *, is_error: bool) -> None:
        """Keep a message. Without a GPU the library complains of that too; a build of TensorRT-RTX needs none."""
        kept = self.errors if is_error else self.warnings
        if text not in kept and "cudaError 35" not in text:
            kept.append(text)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Tell of a phase that is not inside of another one's part."""
        if parent is None:
            self._top = phase
        if parent in (None, self._top):
            self._guard(f"{phase} ({steps} steps)")

    def describe_failure(self) -> str:
        """The first error without places in the library's source; what failed, where it said nothing."""
        text = next(iter(self.errors), "the library does not say why")
        return " ".join(_PLACE.sub("", text).split())[:400]

    def _guard(self, text: str) -> None:
        """An exception must not pass through the library's own code; it is kept until that is left."""
        if self._tell is None or self.stopped is not None:
            return
        try:
            self._tell(text)
        except BaseException as error:
            self.stopped = error


def build_logger(trt: Any, journal: Journal) -> Any:
    """A logger for the library that writes into the journal."""

    class Logger(trt.ILogger):
        """Keeps warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Take one message."""
            if severity <= trt.ILogger.Severity.WARNING:
                journal.add(message, is_error=severity <= trt.ILogger.Severity.ERROR)

    return Logger()


def build_monitor(trt: Any, journal: Journal) -> Any:
    """A progress monitor for the library that tells the journal; it stops the build once a listener has raised."""

    class Monitor(trt.IProgressMonitor):
        """Hands on phases."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            """A phase begins."""
            journal.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            """Whether to go on."""
            return journal.stopped is None

        def phase_finish(self, phase: str) -> None:
            """A phase has ended."""

    return Monitor()
