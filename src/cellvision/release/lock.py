"""One process at a time, together with those that it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from cellvision.errors import ConfigError, explain

if sys.platform != "win32":
    import fcntl


@contextmanager
def hold(path: Path, *, work: str, left: str = "a child of a killed process") -> Iterator[tuple[int, ...]]:
    """Hold the system's lock on a file, which is made, as long as the ``with`` block lasts; Windows has no such lock.

    The lock ends with its process, however that ends; where others have got its descriptor, with the last of them.

    Args:
        path: of the file, which gets the number of the process; it stays.
        work: what only one process does at a time.
        left: what has got the descriptor, and may outlive this process.

    Yields:
        Descriptors, for ``subprocess.Popen(.., pass_fds=..)`` of what is a part of the work; none on Windows.

    Raises:
        ConfigError: another process holds it.
    """
    with path.open("a") as stream:
        if sys.platform == "win32":
            yield ()
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(_explain_taken(path, work=work, left=left)) from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield (stream.fileno(),)


def _explain_taken(path: Path, *, work: str, left: str) -> str:
    first, holders = path.read_text(encoding="utf-8").strip(), _list_holders(path)
    if first and holders and first not in map(str, holders):
        got, hint = f"{left}, still at {work} (process {holders[0]}, {path})", f"wait for it, or kill {holders[0]}"
        return explain(got=got, need="one at a time", hint=f"{hint}, then the same again")
    got, need = f"another process at {work} ({path})", "one at a time"
    return explain(got=got, need=need, hint="the same again when it has ended")


def _list_holders(path: Path) -> list[int]:
    """Numbers of the other processes that have a file open, oldest first, as far as this user may see them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            is_open = any(each.path == str(path.resolve()) for each in process.open_files())
            if is_open and process.pid != os.getpid():
                found.append((process.create_time(), process.pid))
    return [pid for _, pid in sorted(found)]
