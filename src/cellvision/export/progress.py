"""What an export is doing, in lines that name the phase and how far it has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

Tell = Callable[[str], None]
"""Takes a line on the progress: a phase, or a phase, a colon and how far it has come."""

SECONDS_BETWEEN_LINES = 5.0


def say_nothing(text: str) -> None:
    """A `Tell` that nobody listens to."""


class PhaseLines:
    """Writes each phase once and then how far it has come: over itself on a terminal, now and then into a log.

    Example:
        >>> with PhaseLines(sys.stdout) as tell:
        ...     for text in ("parity: 1 of 9 cases", "parity: 2 of 9 cases", "timing"):
        ...         tell(text)
        parity: 1 of 9 cases
        timing
    """

    def __init__(self, out: TextIO | None = None) -> None:
        """Write to ``out``, or to stderr."""
        self._out = out or sys.stderr
        self._phase, self._width, self._last = "", 0, 0.0

    def __call__(self, text: str) -> None:
        """Take a line."""
        phase = text.partition(":")[0]
        is_new, now = phase != self._phase, time.monotonic()
        if self._out.isatty():
            self._out.write(("\n" if is_new and self._phase else "\r") + text.ljust(0 if is_new else self._width))
            self._width = len(text)
        elif is_new or now - self._last >= SECONDS_BETWEEN_LINES:
            self._out.write(f"{text}\n")
            self._last = now
        self._phase = phase
        self._out.flush()

    def __enter__(self) -> PhaseLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self._phase and self._out.isatty():
            self._out.write("\n")
        self._phase = ""
