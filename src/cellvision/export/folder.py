"""Folders that are there as a whole or not at all."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellvision.export.checks import check_folder
from cellvision.runtime.files.writers import name_owner, remove_leftovers


@contextmanager
def make_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to fill, which takes the place of ``folder`` at the end; after an error all is as before.

    Raises:
        ConfigError: something was put into ``folder`` meanwhile that may not be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent, re.compile(rf"\.{re.escape(folder.name)}\.(?P<host>.+)-(?P<process>\d+)\.\w+"))
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.{name_owner()}.", dir=folder.parent) as workplace:
        made = Path(workplace) / "bundle"
        made.mkdir()
        yield made
        check_folder(folder, overwrite=overwrite)  # again: much time has gone by
        _put_in_place(made, folder, Path(workplace))


def _put_in_place(made: Path, folder: Path, workplace: Path) -> None:
    replaced = workplace / "replaced"
    if folder.exists():
        folder.rename(replaced)
    try:
        made.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
