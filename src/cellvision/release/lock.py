"""One process at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellvision.errors import ConfigError, explain

if sys.platform != "win32":
    import fcntl


@contextmanager
def hold(path: Path, *, work: str) -> Iterator[None]:
    """Hold the system's lock on a file, which is made, as long as the ``with`` block lasts; Windows has no such lock.

    The lock ends with its process, however that ends.

    Args:
        path: of the file; it stays.
        work: what only one process does at a time.

    Raises:
        ConfigError: another process holds it.
    """
    with path.open("a") as stream:
        if sys.platform != "win32":
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                got, need = f"another process at {work} ({path})", "one at a time"
                raise ConfigError(explain(got=got, need=need, hint="the same again when it has ended")) from None
        yield
