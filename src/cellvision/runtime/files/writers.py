"""Results on disk: label TIFF and tables, each either complete or not there, and the same in every locale."""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count as count_up
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import tifffile

from cellvision.bundle import FIELD_COLUMNS, Manifest
from cellvision.errors import ConfigError, explain
from cellvision.runtime.cells import Cells, tells_viability

TABLES = ("cells.csv", "fields.csv")
ROWS_PER_STRIP = 64
_CLASSIC_TIFF_BYTES = 2**32 - 2**26  # offsets in a classic TIFF are 32 bits wide
_part_number = count_up()
_PART = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)-\d+\.part")
_SECONDS_OF_A_DAY = 86400


def check_out_folder(images: Iterable[Path], out_dir: Path) -> None:
    """Raise ConfigError where results would go to the folder of an image."""
    if inside := [image for image in images if image.resolve().parent == out_dir.resolve()]:
        raise ConfigError(
            explain(
                got=f"the folder for results, {out_dir}, is that of {inside[0].name}",
                need="another folder, so that no input is overwritten or taken for a result",
                hint=f"--out {out_dir / 'cells'}",
            )
        )


def check_no_results(out_dir: Path) -> None:
    """Raise ConfigError where a folder holds results already: tables do not list the label images of another run."""
    tables = [name for name in TABLES if (out_dir / name).exists()]
    if old := tables + sorted(path.name for path in out_dir.glob("*_labels.tif")):
        raise ConfigError(
            explain(
                got=f"the folder for results, {out_dir}, holds those of another run ({old[0]})",
                need="a folder for each run, so that its tables list all that lies beside them",
                hint="another --out, or remove it",
            )
        )


def make_folder(folder: Path) -> None:
    """Make a folder for results, with those above it, if it does not exist; what killed processes left in it goes.

    Raises:
        ConfigError: it cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(explain(got=f"{folder} is a file", need="a folder", hint="another name"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # can it be written to?
        remove_leftovers(folder)
    except OSError as error:
        raise ConfigError(
            explain(
                got=f"cannot write to the folder {folder} ({error.strerror})",
                need="one that can be made and written",
                hint="another folder",
            )
        ) from error


class StagedFiles:
    """Files of one folder that get their names together, when the ``with`` block ends well.

    Until then, and after an error, nothing new is visible under a final name.

    Raises:
        ConfigError: on entering the block, the folder cannot be made or written; from `path`, the name is a folder's.
    """

    def __init__(self, folder: Path) -> None:
        """Stage files for ``folder``, which is made if it does not exist."""
        self._folder = folder
        self._is_new = not folder.exists()
        self._staged: dict[Path, Path] = {}

    def path(self, name: str) -> Path:
        """Where to write what will be called ``name``."""
        if (final := self._folder / name).is_dir():
            raise ConfigError(explain(got=f"{final} is a folder", need="the name of a file", hint="a file inside it"))
        part = self._folder / f".{name_owner()}-{next(_part_number)}.part"
        self._staged[part] = final
        return part

    def discard(self) -> None:
        """Remove what was written, and the folder if it was made for it."""
        for part in self._staged:
            part.unlink(missing_ok=True)
        self._staged = {}
        if self._is_new:
            with suppress(OSError):  # others may have put files there
                self._folder.rmdir()

    def __enter__(self) -> Self:
        try:
            make_folder(self._folder)
        except ConfigError:
            self.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for part, final in list(self._staged.items()):
                    part.replace(final)
                    del self._staged[part]
        finally:
            if kind is not None or self._staged:
                self.discard()


def name_owner() -> str:
    """This machine and process, for the names of files and folders that others may remove once it is no more."""
    return f"{platform.node()}-{os.getpid()}"


def remove_leftovers(folder: Path, name: re.Pattern[str] = _PART) -> None:
    """Remove what killed processes of this machine have left in a folder.

    Only what bears a name of ours with this machine and a process that is no more, and has not been written to for a
    day: containers can have one name and not see each other's processes.

    Args:
        folder: where to look.
        name: of the files and folders in question, with the groups "host" and "process" of `name_owner`.
    """
    for path in folder.glob(".*"):
        found = name.fullmatch(path.name)
        if found and found["host"] == platform.node() and not psutil.pid_exists(int(found["process"])):
            with suppress(FileNotFoundError):  # another process can be faster
                if time.time() - path.stat().st_mtime > _SECONDS_OF_A_DAY:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


class LabelSpool:
    """Rows of a label image on their way to a file, compressed on disk until their numbers are final."""

    def __init__(self, folder: Path) -> None:
        """Use an unnamed temporary file in ``folder``."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._bands: list[tuple[int, int, int]] = []

    def add(self, rows: np.ndarray) -> None:
        """Keep the next rows, (h, W) int32."""
        packed = zlib.compress(np.ascontiguousarray(rows).data, level=1)
        self._bands.append((len(packed), *rows.shape))
        self._file.write(packed)

    def iterate_rows(self) -> Iterator[np.ndarray]:
        """All rows again, in the bands in which they came."""
        self._file.seek(0)
        for size, height, width in self._bands:
            yield np.frombuffer(zlib.decompress(self._file.read(size)), np.int32).reshape(height, width)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def write_label_image(
    path: Path, bands: Iterable[np.ndarray], *, shape: tuple[int, int], largest: int, pixel_size_um: float | None = None
) -> None:
    """Write a label image as a deflate-compressed TIFF, uint16 where the labels fit, else uint32.

    Args:
        path: file to write.
        bands: (h, W) integers from top to bottom; only one band is in memory at a time.
        shape: (H, W) of the whole image.
        largest: largest label.
        pixel_size_um: written as the resolution, or None.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "labels.tif"
        >>> write_label_image(path, [np.eye(3, dtype=np.int32)], shape=(3, 3), largest=1)
        >>> tifffile.imread(path).tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    """
    dtype = np.dtype("<u2" if largest < 2**16 else "<u4")
    large = shape[0] * shape[1] * dtype.itemsize > _CLASSIC_TIFF_BYTES
    resolution: dict[str, Any] = {}
    if pixel_size_um is not None:
        resolution = {"resolution": (1e4 / pixel_size_um,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=large, byteorder="<") as tiff:
        tiff.write(
            (zlib.compress(strip.astype(dtype).data, level=6) for strip in _cut_strips(bands)),
            shape=shape,
            dtype=dtype,
            photometric="minisblack",
            compression="zlib",
            rowsperstrip=ROWS_PER_STRIP,
            metadata=None,
            software="cellvision",
            **resolution,
        )


def _cut_strips(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows in pieces of ROWS_PER_STRIP; only the last can be shorter."""
    rest: np.ndarray | None = None
    for band in bands:
        rows = band if rest is None or not len(rest) else np.concatenate([rest, band])
        whole = len(rows) // ROWS_PER_STRIP * ROWS_PER_STRIP
        for start in range(0, whole, ROWS_PER_STRIP):
            yield rows[start : start + ROWS_PER_STRIP]
        rest = rows[whole:]
    if rest is not None and len(rest):
        yield rest


class ResultTables:
    """``cells.csv`` (a row per cell) and ``fields.csv`` (a row per image) of one run; they appear when the run ends.

    Numbers have a decimal point and no thousands separator; unknown values are empty; UTF-8, lines end in a newline.
    """

    def __init__(self, folder: Path, *, manifest: Manifest) -> None:
        """Prepare tables with the columns of this bundle; use the object in a ``with`` block."""
        self._files = StagedFiles(folder)
        has_viability = tells_viability(manifest.kind, manifest.classes)
        self._cell_columns = [
            "image", "label", "class", "area_px", "area_um2", "centroid_y_px", "centroid_x_px",
            *(f"mean_{channel.name}" for channel in manifest.channels),
            *(["p_live"] if has_viability else []),
            *(["score"] if manifest.kind == "instance" else []),
        ]  # fmt: skip
        image, cells, *shares = FIELD_COLUMNS
        self._field_columns = [image, cells, *manifest.classes[1:], *(shares if has_viability else [])]
        self._images = 0

    def __enter__(self) -> Self:
        self._files.__enter__()
        self._streams = [
            self._files.path(name).open("w", encoding="utf-8", errors="backslashreplace", newline="") for name in TABLES
        ]
        self._cells = csv.DictWriter(self._streams[0], self._cell_columns, lineterminator="\n")
        self._fields = csv.writer(self._streams[1], lineterminator="\n")
        self._cells.writeheader()
        self._fields.writerow(self._field_columns)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._streams:
            stream.close()
        if self._images == 0:
            self._files.discard()
        self._files.__exit__(kind, error, traceback)

    def add(self, name: str, cells: Cells) -> None:
        """Add the rows of one image; without any image no table appears."""
        self._images += 1
        for cell in cells.to_rows():
            self._cells.writerow({"image": name, **{key: _format(value) for key, value in cell.items()}})
        row: list[int | float | None] = [len(cells), *(cells.count(name) for name in cells.classes[1:])]
        if cells.has_viability:
            found = cells.viability()
            row += [None if share is None else 100.0 * share for share in (found.viability, found.low, found.high)]
        self._fields.writerow([name, *map(_format, row)])


def _format(value: str | int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
