"""How far long work has come: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress as Bar

from cellvision.runtime.maps.tile_run import Progress

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress(name: str, *, unit: str = "tiles") -> Iterator[Progress]:
    """A function to call with (units done, units in all); it writes to stderr, and nothing where there is one unit.

    Args:
        name: of the work, printable.
        unit: what is counted, in plural.
    """
    if not sys.stderr.isatty():
        yield _LinePrinter(name, unit)
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name.replace("[", r"\["), total=None, visible=False)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=total > 1)

        yield update


class _LinePrinter:
    def __init__(self, name: str, unit: str) -> None:
        self._name = name
        self._unit = unit
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if total > 1 and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(f"{self._name}: {done} of {total} {self._unit}", file=sys.stderr, flush=True)
