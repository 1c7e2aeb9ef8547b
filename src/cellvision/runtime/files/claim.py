"""One run at a time in a folder for results."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cellvision.errors import ConfigError, explain
from cellvision.runtime.files.writers import check_no_results, make_folder

if sys.platform != "win32":
    import fcntl

LOCK_NAME = ".cellvision.lock"


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for the results of one run, as long as the ``with`` block lasts; it is made if need be.

    Two runs that both find it empty would each write tables without the other's rows. So a run holds the system's lock
    (flock) on a file in it, LOCK_NAME, which says whose it is: "process PID of HOST". The C++ program does the same.
    The lock ends with its process, however that ends; a file that was left behind is in nobody's way. The number alone
    would not do: a later process, or one of another container, can have the same. Windows has no such lock, and there
    two runs are told apart only once the first has written something.

    Raises:
        ConfigError: another run holds it, it holds results already (see `check_no_results`), or it cannot be made or
            written.
    """
    is_new = not folder.exists()
    make_folder(folder)
    try:
        with _hold_lock(folder):
            check_no_results(folder)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # there are results
                folder.rmdir()


@contextmanager
def _hold_lock(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    path = folder / LOCK_NAME
    try:
        lock = _take_lock(path)
    except BlockingIOError:
        raise ConfigError(
            explain(
                got=f"another run is at work in the folder for results, {folder} ({_read_owner(path)})",
                need="a folder for each run, so that its tables list all that lies beside them",
                hint="another --out",
            )
        ) from None
    except OSError as error:
        got = f"cannot lock {path} ({error.strerror})"
        raise ConfigError(explain(got=got, need="a file system with locks", hint="another --out")) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: afterwards it can be another's
        os.close(lock)


if sys.platform != "win32":

    def _take_lock(path: Path) -> int:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(lock)):
                raise BlockingIOError  # it was another's until just now, who has removed it
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} of {platform.node()}\n".encode())
        except OSError:
            os.close(lock)
            raise
        return lock


def _read_owner(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip() or "just begun"
    return "just ended"
