"""A label image too large for memory: in a file that is mapped into it, a page at a time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from cellvision.errors import DataError, explain

_PIECE = 2**24


class MappedLabels:
    """An (H, W) int32 label image of zeros in an unnamed temporary file; for use in a ``with`` block.

    Attributes:
        array: of it, to write to and read from; the system keeps of it in memory what there is room for.
    """

    array: np.ndarray

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Make the file in ``folder``.

        Raises:
            DataError: there is no room for it.
        """
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        try:
            _reserve(self._file.fileno(), shape[0] * shape[1] * 4)
        except OSError as error:
            self._file.close()
            size = f"{shape[0] * shape[1] * 4 / 2**20:.0f} MiB"
            raise DataError(
                explain(
                    got=f"no room for {size} of labels in {folder} ({error.strerror})",
                    need="that much while the work lasts",
                    hint="another folder for results",
                )
            ) from error
        self.array = np.memmap(self._file, np.int32, "r+", shape=shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.array = np.zeros((0, 0), np.int32)
        self._file.close()


def _reserve(descriptor: int, size: int) -> None:
    """Fill a file with zeros: a page that has no room when it is written to would end the process, not raise."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, _PIECE):
        os.write(descriptor, bytes(min(_PIECE, size - start)))
