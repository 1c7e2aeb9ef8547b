"""TIFF, OME-TIFF and ImageJ TIFF: which pages and strips hold which channel, and decoding only those asked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cellvision.data.images.info import check_size, decoding, refuse
from cellvision.data.images.tiff_directories import check_directories
from cellvision.data.images.tiff_metadata import read_channel_names, read_pixel_size_um
from cellvision.errors import DataError, explain

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 2**15
MAX_GUESSED_CHANNELS = 16
MAX_SEGMENT_SAMPLES = 2**24
"""A tile may be this large, or as large as the image; a larger one is damage or an attack."""

_ROWS_BYTES = 8 << 20
_COMPRESSIONS = {1, 5, 7, 8, 32773, 32946, 34925, 34926, 50000}  # none LZW JPEG deflate PackBits deflate LZMA Zstd Zstd
_GREY, _RGB, _YCBCR, _PALETTE = 1, 2, 6, 3
_NAMED_AXES = {"Z": "a z-stack", "T": "a time series"}
_ALPHA = (1, 2)


class TiffSource:
    """An open TIFF file whose strips or tiles are decoded anew at every read, so that memory stays bounded.

    One read holds its result, and one decoded strip or tile (8 MiB of rows where strips are uncompressed).
    Compressed strips are as wide as the image: read them in full-width bands, not in columns.
    """

    def __init__(self, path: Path, *, max_pixels: int | None) -> None:
        """Read the header of the first image; DataError names what cannot be read faithfully."""
        self.path = path
        self._max_pixels = max_pixels
        with decoding(path):
            # Without _multifile an OME-TIFF may make tifffile open other files that its XML names.
            self._tiff = tifffile.TiffFile(path, _multifile=False)
        try:
            with decoding(path):
                self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        check_directories(self.path, max_pages=MAX_PAGES)
        series = self._find_series()
        page = self._page = series.keyframe
        self._channel_axis, self.shape = self._find_channels(series)
        if min(self.shape) < 1:
            raise DataError(explain(got=f"{self.path} is {self.shape}", need="at least 1x1 px", hint="save it again"))
        self._check_page(page)
        self.dtype = np.dtype(page.dtype)
        self.has_alpha = self.shape[0] > 1 and bool(page.extrasamples) and int(page.extrasamples[-1]) in _ALPHA
        self.channel_names = read_channel_names(self._tiff, self.shape[0] - self.has_alpha)
        self.pixel_size_um = read_pixel_size_um(self._tiff, page)
        separate, _, length, width, contiguous = page.shaped
        pages = list(series.pages)
        whole_planes = (length, width) == self.shape[1:] and len(pages) * separate * contiguous == self.shape[0]
        self._pages = pages if whole_planes and not (separate > 1 and contiguous > 1) else None
        self._series = series
        if any(p is None for p in pages):
            what = "lacks planes that its OME-XML lists"
            raise refuse(self.path, what, need="all planes in one file", hint="export it again")

    def _find_series(self) -> Any:
        with suppress(IndexError):
            self._tiff.pages[MAX_PAGES]  # walks the chain of pages this far only, even where it bites its tail
            raise refuse(self.path, f"has over {MAX_PAGES} pages", need="one field", hint="export one field per file")
        every = [s for s in self._tiff.series if not s.keyframe.is_reduced]
        if not every:
            raise DataError(explain(got=f"{self.path} has no page", need="an undamaged TIFF", hint="copy it again"))
        if len(every) > 1:
            raise refuse(self.path, f"holds {len(every)} images", need="one per file", hint="export each on its own")
        if self._tiff.is_ome and every[0].kind != "ome":
            what = "has OME-XML that does not fit its pages"
            raise refuse(self.path, what, need="all planes in one file", hint="export it again")
        return every[0]

    def _find_channels(self, series: Any) -> tuple[int | None, tuple[int, int, int]]:
        axes, shape = _drop_single(series.axes, series.shape)
        for letter, size in zip(axes, shape, strict=True):
            if letter in _NAMED_AXES:
                what = f"is {_NAMED_AXES[letter]} of {size}"
                raise refuse(self.path, what, need="one plane per channel", hint="project or split it first")
        if axes == "YX":
            return None, (1, shape[0], shape[1])
        if len(axes) != 3 or "X" not in axes or "Y" not in axes:
            raise refuse(self.path, f"has the axes {axes} {shape}", need="channels, y and x", hint="export one plane")
        letter = next(a for a in axes if a not in "YX")
        axis = axes.index(letter) if letter in "CS" else _guess_channel_axis(self.path, shape)
        planes = tuple(size for i, size in enumerate(shape) if i != axis)
        return axis, (shape[axis], planes[0], planes[1])

    def _check_page(self, page: Any) -> None:
        if page.dtype is None or page.dtype.kind not in "buif":
            raise refuse(self.path, f"holds {page.dtype} numbers", need="integers or floats", hint="save it as float32")
        if page.compression not in _COMPRESSIONS:
            what = f"is compressed by {getattr(page.compression, 'name', page.compression)}"
            raise refuse(self.path, what, need="none, LZW, deflate, Zstd or JPEG", hint="save it with deflate")
        if page.imagedepth > 1 or page.tiledepth > 1:
            raise refuse(self.path, "holds volumes", need="one plane per channel", hint="project or split it first")
        if (orientation := page.tags.valueof(274, 1)) != 1:
            what = f"is turned (orientation {orientation})"
            raise refuse(self.path, what, need="orientation 1", hint="save it upright")
        segment = math.prod(page.chunks)
        if segment > max(MAX_SEGMENT_SAMPLES, 4 * math.prod(self.shape)):
            raise DataError(
                explain(
                    got=f"{self.path} is {self.shape} but its tiles hold {segment} samples",
                    need=f"tiles no larger than the image or {MAX_SEGMENT_SAMPLES} samples",
                    hint="save it with tiles of 256x256",
                )
            )

    def check_image(self) -> None:
        """See PixelSource: inverted grey, palettes and printing colours are no counts."""
        photometric = int(self._page.photometric)
        is_lookup = photometric == _PALETTE and self._tiff.is_imagej  # counts, shown in the colours of a lookup table
        if photometric in (_GREY, _RGB) or is_lookup or (photometric == _YCBCR and self._page.compression == 7):
            return
        what = f"stores its pixels as {getattr(self._page.photometric, 'name', photometric)}"
        raise refuse(self.path, what, need="grey (MINISBLACK) or RGB", hint="save it as grey or RGB TIFF")

    def read_counts(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """See PixelSource."""
        channels = self.shape[0]
        if self._pages is None:
            return self._read_whole()[:, top:bottom, left:right]
        check_size(self.path, channels * (bottom - top) * (right - left), max_pixels=self._max_pixels)
        result = np.zeros((channels, bottom - top, right - left), self.dtype)
        with decoding(self.path):
            for index, page in enumerate(self._pages):
                for plane, y, x, segment in self._segments(page, top, bottom, left, right):
                    first = index * (channels // len(self._pages)) + plane
                    _paste(result, segment, first=first, y=y - top, x=x - left)
        return result

    def read_labels(self) -> np.ndarray:
        """See PixelSource."""
        if self._page.compression == 7:
            what = "is a label image in JPEG, which changes the labels"
            raise refuse(self.path, what, need="another compression", hint="export it as PNG")
        return self.read_counts(0, self.shape[1], 0, self.shape[2])

    def close(self) -> None:
        """See PixelSource."""
        self._tiff.close()

    def _read_whole(self) -> np.ndarray:
        """(C, H, W), for channels that are not stored plane by plane (each page one row of a (H, W, C) array)."""
        check_size(self.path, math.prod(self.shape), max_pixels=self._max_pixels)
        with decoding(self.path):
            _, shape = _drop_single(self._series.axes, self._series.shape)
            pixels = self._series.asarray().reshape(shape)
        return pixels[None] if self._channel_axis is None else np.moveaxis(pixels, self._channel_axis, 0)

    def _segments(
        self, page: Any, top: int, bottom: int, left: int, right: int
    ) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """(first channel within the page, y, x, pixels (h, w, c)) of every strip or tile that touches the window."""
        key = page.keyframe
        separate, _, height, width, _ = key.shaped
        rows = key.tilelength if key.is_tiled else key.rowsperstrip
        columns = key.tilewidth if key.is_tiled else width
        down, across = math.ceil(height / rows), math.ceil(width / columns)
        touched = itertools.product(
            range(separate), range(top // rows, -(-bottom // rows)), range(left // columns, -(-right // columns))
        )
        for plane, row, column in touched:
            index = (plane * down + row) * across + column
            y = row * rows
            if _is_plain(key):
                for start, pixels in self._plain_rows(page, index, max(top, y), min(bottom, y + rows, height), y):
                    yield plane, start, 0, pixels
            elif (decoded := self._decode(page, index)) is not None:
                yield plane, y, column * columns, decoded

    def _plain_rows(self, page: Any, index: int, top: int, bottom: int, y: int) -> Iterator[tuple[int, np.ndarray]]:
        """Rows top..bottom of an uncompressed strip that starts at row ``y``, a few at a time."""
        key = page.keyframe
        dtype = np.dtype(self._tiff.byteorder + key.dtype.char)
        width, samples = key.shaped[3:]
        row_bytes = width * samples * dtype.itemsize
        step = max(1, _ROWS_BYTES // row_bytes)
        if page.dataoffsets[index] == 0:
            return
        for start in range(top, bottom, step):
            stop = min(start + step, bottom)
            data = self._read_bytes(page.dataoffsets[index] + (start - y) * row_bytes, (stop - start) * row_bytes)
            yield start, np.frombuffer(data, dtype).reshape(stop - start, width, samples)

    def _decode(self, page: Any, index: int) -> np.ndarray | None:
        """(h, w, c) pixels of one strip or tile, or None where the file leaves it out (all zero)."""
        key = page.keyframe
        if page.dataoffsets[index] == 0 or page.databytecounts[index] == 0:
            return None
        tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader} if key.compression == 7 else {}
        data = self._read_bytes(page.dataoffsets[index], page.databytecounts[index])
        segment, _, _ = key.decode(data, index, **tables)
        return segment[0]

    def _read_bytes(self, offset: int, count: int) -> bytes:
        handle = self._tiff.filehandle
        handle.seek(offset)
        if len(data := handle.read(count)) != count:
            raise DataError(
                explain(
                    got=f"{self.path} ends {count - len(data)} bytes early",
                    need="a complete file",
                    hint="copy or export the file again",
                )
            )
        return data


def _drop_single(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    kept = [(a, n) for a, n in zip(axes, shape, strict=True) if n != 1 or a in "YX"]
    return "".join(a for a, _ in kept), tuple(n for _, n in kept)


def _guess_channel_axis(path: Path, shape: tuple[int, ...]) -> int:
    """The axis of channels in a 3-D image without axis names: its smallest, if first or last and at most 16."""
    smallest = [i for i, size in enumerate(shape) if size == min(shape)]
    if len(smallest) == 1 and smallest[0] != 1 and min(shape) <= MAX_GUESSED_CHANNELS:
        return smallest[0]
    raise refuse(
        path,
        f"is {shape} without names for its axes",
        need=f"channels first or last, at most {MAX_GUESSED_CHANNELS}, or named axes",
        hint="save it as OME-TIFF with axes CYX",
    )


def _is_plain(page: Any) -> bool:
    """Whether rows can be read from the file as they are."""
    return (
        page.compression == 1
        and page.predictor == 1
        and page.fillorder == 1
        and not page.is_tiled
        and page.bitspersample == 8 * page.dtype.itemsize
    )


def _paste(result: np.ndarray, segment: np.ndarray, *, first: int, y: int, x: int) -> None:
    """Copy (h, w, c) pixels into channels ``first`` onwards of (C, H, W); what lies outside is cut off."""
    height, width, samples = segment.shape
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + height, result.shape[1]), min(x + width, result.shape[2])
    part = segment[top - y : bottom - y, left - x : right - x]
    result[first : first + samples, top:bottom, left:right] = np.moveaxis(part, -1, 0)
