"""Every image in: TIFF, OME-TIFF, PNG and JPEG as raw counts, never cut, refused from the header where they cannot be.

What becomes of the pixels:

- uint8, uint16 and float32 come back as stored; 1-bit images as uint8 0 and 1; every other integer or float type as
  float32 if that holds each value exactly (whole numbers up to 2**24), else a DataError says so.
- NaN and infinity are a DataError: they would spread through a net to every pixel.
- An alpha channel is dropped if it is opaque everywhere, else a DataError: it may hold a stain.
- A palette PNG comes back as red, green, blue; as a label image it keeps its indices.
- The format is read from the first bytes of the file, not from its name.

This module needs numpy and the decoders only; the runtime uses it without torch.
"""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from cellvision.data.images.info import ImageInfo, PixelSource, refuse
from cellvision.data.images.png_jpeg import JPEG_MAGIC, PNG_MAGIC, JpegSource, PngSource
from cellvision.data.images.tiff import TIFF_MAGICS, TiffSource
from cellvision.errors import DataError, ShapeError, explain

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageInfo",
    "ImageReader",
    "image_stem",
    "list_images",
    "open_image",
    "read_image",
    "read_info",
    "read_label_image",
]

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
MAX_LABEL = 2**31 - 1
MAX_EXACT = 2**24
"""float32 holds every whole number up to this."""

_KEPT_DTYPES = ("uint8", "uint16", "float32")
_KNOWN_MAGICS = {
    b"": "an empty file",
    b"%PDF": "a PDF",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"RIFF": "a WebP or AVI",
    b"<": "XML or SVG",
    b"PK": "a zip archive",
    b"\x89HDF": "HDF5",
    b"ZISRAW": "Zeiss CZI",
    b"\xda\xce\xbe\x0a": "Nikon ND2",
    b"version https://git-lfs": "a Git LFS pointer",
}


class ImageReader:
    """An open image of which any window can be read; use it in a ``with`` block, in one thread at a time.

    Of a TIFF only the strips or tiles under the window are decoded, and nothing is kept between reads: a band of a
    20000 x 20000 image costs the memory of that band. PNG and JPEG are decoded once, whole, at the first read.

    Attributes:
        info: what the header says.
    """

    def __init__(self, source: PixelSource) -> None:
        """Take over an open ``source``; see ``open_image``."""
        self._source = source
        channels, height, width = source.shape
        name = source.dtype.name
        self.info = ImageInfo(
            path=source.path,
            shape=(channels - source.has_alpha, height, width),
            dtype=name if name in _KEPT_DTYPES else "uint8" if name == "bool" else "float32",
            channel_names=source.channel_names,
            pixel_size_um=source.pixel_size_um,
        )

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """(C, bottom - top, right - left) of raw counts, in ``info.dtype``.

        Raises:
            ShapeError: the window is empty or leaves the image.
            DataError: the file is damaged, or the window holds NaN, infinity, transparency or numbers beyond float32.
        """
        _, height, width = self.info.shape
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            window = f"rows {top}:{bottom}, columns {left}:{right}"
            raise ShapeError(
                explain(
                    got=f"{self.info.path} is {height}x{width} px, the window {window}",
                    need="a window inside the image, at least 1x1 px",
                    hint=f"rows 0:{height}, columns 0:{width}",
                )
            )
        counts = self._source.read_counts(top, bottom, left, right)
        if self._source.has_alpha:
            counts = _drop_alpha(self.info.path, counts)
        return _to_counts(self.info.path, counts, self.info.dtype)

    def close(self) -> None:
        """Release the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_image(path: Path | str, *, max_pixels: int | None = None) -> ImageReader:
    """An ``ImageReader``, after checks of everything that the header tells.

    Args:
        path: TIFF, PNG or JPEG.
        max_pixels: largest number of samples (pixels x channels) of one read (of the whole image for PNG and JPEG);
            None for 2**31, less where a small file claims a vast image.

    Raises:
        DataError: missing, empty, damaged, too large, or of a kind that is not supported.
    """
    source = _open_source(Path(path), max_pixels=max_pixels)
    try:
        source.check_image()
    except DataError:
        source.close()
        raise
    return ImageReader(source)


def read_info(path: Path | str) -> ImageInfo:
    """What the header of an image file says; no pixel is decoded. Raises as ``open_image`` does."""
    with open_image(path, max_pixels=2**63) as reader:
        return reader.info


def read_image(path: Path | str, *, max_pixels: int | None = None) -> tuple[np.ndarray, ImageInfo]:
    """The whole image as (C, H, W) raw counts (uint8, uint16 or float32), and its ``ImageInfo``.

    Raises:
        DataError: as for ``open_image`` and ``ImageReader.read``.

    Example:
        >>> import tempfile, tifffile
        >>> path = Path(tempfile.mkdtemp()) / "field.tif"
        >>> tifffile.imwrite(path, np.full((2, 5, 7), 4095, np.uint16), imagej=True, metadata={"axes": "CYX"})
        >>> image, info = read_image(path)
        >>> image.shape, image.dtype.name, int(image.max()), info.pixel_size_um
        ((2, 5, 7), 'uint16', 4095, None)
    """
    with open_image(path, max_pixels=max_pixels) as reader:
        _, height, width = reader.info.shape
        return reader.read(0, height, 0, width), reader.info


def read_label_image(path: Path | str) -> np.ndarray:
    """(H, W) int32, 0 = background, from a one-channel PNG or TIFF of whole numbers (any type, or palette indices).

    Raises:
        DataError: as for ``open_image``; more than one channel, JPEG, fractions, or numbers outside 0..2**31 - 1.
    """
    path = Path(path)
    source = _open_source(path, max_pixels=None)
    try:
        stored = source.read_labels()
    finally:
        source.close()
    if len(stored) != 1:
        raise refuse(
            path, f"is a label image of {len(stored)} channels", need="one channel", hint="save labels as 16-bit grey"
        )
    if stored.dtype.kind == "f" and not np.array_equal(stored, np.trunc(stored)):
        raise refuse(path, "is a label image with fractions", need="whole numbers", hint="save labels as 16-bit grey")
    low, high = stored.min(), stored.max()
    # "not ... <=" also catches infinity, which equals its own truncation.
    if not 0 <= low <= high <= MAX_LABEL:
        raise refuse(
            path, f"holds labels from {low} to {high}", need=f"0 to {MAX_LABEL}", hint="number the cells from 1 upwards"
        )
    return np.ascontiguousarray(stored[0]).astype(np.int32)


def image_stem(path: Path | str) -> str:
    """The file name without ``.png``, ``.tif``, ``.ome.tif`` ...: what image and label file have in common.

    Example:
        >>> image_stem("plate1/well_A1.ome.tif")
        'well_A1'
    """
    stem = Path(path).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def list_images(folder: Path | str, pattern: str = "*") -> list[Path]:
    """The image files directly in ``folder`` whose names match ``pattern``, sorted by name; hidden files are left out.

    Raises:
        DataError: the folder does not exist, or no file in it matches.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(explain(got=f"{folder} is no folder", need="a folder with images", hint="check the path"))
    images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    matching = sorted((p for p in images if fnmatch(p.name, pattern)), key=lambda p: p.name)
    if not matching:
        raise DataError(
            explain(
                got=f"{folder} has {len(images)} images, none named like {pattern!r}",
                need=f"at least one of {', '.join(IMAGE_SUFFIXES)}",
                hint=advise_pattern("pattern", pattern),
            )
        )
    return matching


def advise_pattern(setting: str, pattern: str) -> str:
    """What to do about a pattern that no file name matches.

    Example:
        >>> advise_pattern("data.pattern", "plate[1]*")
        'data.pattern="*"; [1] in it stands for one character of these, and [[] for a bracket'
    """
    bracket = re.search(r"\[[^\]]+\]", pattern)
    return f'{setting}="*"' + (
        f"; {bracket[0]} in it stands for one character of these, and [[] for a bracket" if bracket else ""
    )


def _open_source(path: Path, *, max_pixels: int | None) -> PixelSource:
    try:
        with path.open("rb") as stream:
            start = stream.read(32)
    except OSError as error:
        reason = "is a folder" if path.is_dir() else f"cannot be opened ({error.strerror})"
        raise DataError(explain(got=f"{path} {reason}", need="an image file", hint="check the path")) from error
    if start.startswith(PNG_MAGIC):
        return PngSource(path, max_pixels=max_pixels)
    if start.startswith(JPEG_MAGIC):
        return JpegSource(path, max_pixels=max_pixels)
    if start.startswith(TIFF_MAGICS):
        return TiffSource(path, max_pixels=max_pixels)
    found = next((name for magic, name in _KNOWN_MAGICS.items() if magic and start.startswith(magic)), None)
    found = "an empty file" if not start else found or f"no image (it starts with {start[:8]!r})"
    raise DataError(explain(got=f"{path} is {found}", need="TIFF, PNG or JPEG", hint="export the image again"))


def _drop_alpha(path: Path, counts: np.ndarray) -> np.ndarray:
    alpha = counts[-1]
    opaque = 1.0 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    if (seen := int(np.count_nonzero(alpha != opaque))) > 0:
        raise refuse(
            path,
            f"has an alpha channel that is not opaque at {seen} pixels",
            need="no alpha, or opaque everywhere",
            hint='drop it, or save the stains as photometric="minisblack" if it is one of them',
        )
    return counts[:-1]


def _to_counts(path: Path, counts: np.ndarray, dtype: str) -> np.ndarray:
    if counts.dtype.kind == "f" and (bad := int(counts.size - np.count_nonzero(np.isfinite(counts)))) > 0:
        raise DataError(
            explain(got=f"{path} holds {bad} NaN or infinite values", need="finite counts", hint="replace them first")
        )
    with np.errstate(over="ignore"):  # what overflows is caught below
        converted = np.ascontiguousarray(counts, dtype=dtype)
    if counts.dtype.name not in ("bool", *_KEPT_DTYPES):
        inexact = converted != counts if counts.dtype.kind == "f" else (counts < -MAX_EXACT) | (counts > MAX_EXACT)
        if (lost := int(np.count_nonzero(inexact))) > 0:
            raise refuse(
                path,
                f"holds {lost} {counts.dtype} values that float32 cannot hold",
                need="values that fit float32 exactly",
                hint="save it as uint16 or float32",
            )
    return converted
