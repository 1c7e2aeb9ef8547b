"""PNG and JPEG files: headers by Pillow, which never sees more than the header of a PNG, pixels at full depth."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from cellvision.data.images.info import check_size, decoding, refuse

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette expands to red, green, blue
_PALETTE = 3
_EXIF_ORIENTATION = 0x0112
_EOI, _SOS = 0xD9, 0xDA
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in data: neither a stuffed 0xFF nor a restart
_FILLER = b"\x92\x49\x24" * 20  # in the usual tables, numbers that are not 0
_MORE_DATA = _FILLER + b"".join(bytes([0xFF, 0xD0 + at]) + _FILLER for at in range(8))  # whichever restart is next


class PngSource:
    """A PNG file; the pixels are decoded once, at the first read.

    Pillow cuts 16-bit colour to 8 bits, so libpng decodes instead. 1, 2 and 4-bit grey comes back as stored (0..1,
    0..3, 0..15), a palette as red, green, blue. Print resolutions are no pixel sizes and are left out.
    """

    channel_names: tuple[str, ...] | None = None
    pixel_size_um: float | None = None

    def __init__(self, path: Path, *, max_pixels: int | None) -> None:
        """Read the header; ``max_pixels`` as in ``check_size``."""
        self.path = path
        with decoding(path), path.open("rb") as stream:
            # The plugin class itself: Image.open would apply Pillow's own size limit, and warn.
            header = PngImageFile(stream)
            stream.seek(16)
            width, height, self._bits, self._colour_type = struct.unpack(">IIBB", stream.read(10))
            transparency = "transparency" in header.info
            channels = _PNG_CHANNELS[self._colour_type] + transparency
        self.has_alpha = self._colour_type in (4, 6) or transparency
        self.shape = (channels, height, width)
        self.dtype = np.dtype(np.uint16 if self._bits == 16 else np.uint8)
        check_size(path, channels * height * width, max_pixels=max_pixels)
        if getattr(header, "n_frames", 1) > 1:
            raise refuse(path, "is animated", need="one still image", hint="save the frame you mean as PNG")
        _check_upright(path, header)
        self._pixels: np.ndarray | None = None

    def check_image(self) -> None:
        """Nothing to refuse."""

    def read_counts(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """See PixelSource."""
        if self._pixels is None:
            self._pixels = self._decode()
        return self._pixels[:, top:bottom, left:right]

    def read_labels(self) -> np.ndarray:
        """See PixelSource."""
        if self._colour_type == _PALETTE:
            with decoding(self.path):
                return np.asarray(PngImageFile(io.BytesIO(self.path.read_bytes())))[None]
        return self.read_counts(0, self.shape[1], 0, self.shape[2])

    def close(self) -> None:
        """Let the decoded pixels go."""
        self._pixels = None

    def _decode(self) -> np.ndarray:
        channels, height, width = self.shape
        with decoding(self.path):
            pixels = imagecodecs.png_decode(self.path.read_bytes()).reshape(height, width, channels)
        if self._bits < 8 and self._colour_type == 0:
            # libpng spreads the stored numbers over 0..255; the first channel is grey, a second one would be alpha.
            pixels[..., 0] //= 255 // (2**self._bits - 1)
        return np.moveaxis(pixels, -1, 0)


class JpegSource:
    """A grey or colour JPEG file; the pixels are decoded once, at the first read."""

    channel_names: tuple[str, ...] | None = None
    pixel_size_um: float | None = None
    has_alpha: bool = False
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, *, max_pixels: int | None) -> None:
        """Read the header; ``max_pixels`` as in ``check_size``."""
        self.path = path
        with decoding(path), path.open("rb") as stream:
            header = JpegImageFile(stream)
        if header.mode not in ("L", "RGB"):
            raise refuse(path, f"is a {header.mode} JPEG", need="grey or RGB", hint="convert it to RGB and save as PNG")
        _check_upright(path, header)
        self.shape = (len(header.mode), header.height, header.width)
        check_size(path, len(header.mode) * header.height * header.width, max_pixels=max_pixels)
        self._pixels: np.ndarray | None = None

    def check_image(self) -> None:
        """Nothing to refuse."""

    def read_counts(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """See PixelSource."""
        if self._pixels is None:
            with decoding(self.path):
                pixels = _decode_jpeg(self.path.read_bytes())
            self._pixels = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0)
        return self._pixels[:, top:bottom, left:right]

    def read_labels(self) -> np.ndarray:
        """Raise DataError: JPEG changes numbers."""
        what = "is a label image in JPEG, which changes the labels"
        raise refuse(self.path, what, need="PNG or TIFF", hint="export it as PNG")

    def close(self) -> None:
        """Let the decoded pixels go."""
        self._pixels = None


def _decode_jpeg(file: bytes) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8.

    Of a file whose data ends early, but before an end marker, decoders make up the rest and say nothing (libjpeg warns,
    which Pillow and imagecodecs keep to themselves). More data in front of that marker tells it: whoever has all
    pixels already does not read it, others make other pixels of it.

    Raises:
        OSError: the data ends early.
    """
    end = _find_jpeg_end(file)
    with_more = zlib.crc32(np.array(JpegImageFile(io.BytesIO(file[:end] + _MORE_DATA + file[end:]))).data)
    pixels = np.array(JpegImageFile(io.BytesIO(file)))
    if zlib.crc32(pixels.data) != with_more:
        raise OSError("the data ends before the image is complete")
    return pixels


def _find_jpeg_end(file: bytes) -> int:
    """Where the end marker of the image itself lies, not that of a preview in the header or of a picture behind it."""
    at = 2
    while at + 4 <= len(file):
        marker, size = file[at + 1], int.from_bytes(file[at + 2 : at + 4])
        if file[at] != 0xFF or marker == _EOI:
            break
        at += 1 if marker == 0xFF else 2 + size
        if marker == _SOS:
            at = next((found.start() for found in _JPEG_MARKER.finditer(file, at)), len(file))
    if file[at : at + 2] != bytes([0xFF, _EOI]):
        raise OSError("there is no end marker")
    return at


def _check_upright(path: Path, header: PngImageFile | JpegImageFile) -> None:
    with decoding(path):
        # The base class's method: that of PngImageFile decodes the whole image in search of late metadata.
        orientation = Image.Image.getexif(header).get(_EXIF_ORIENTATION, 1)
    if orientation != 1:
        # Viewers disagree on turning it, so nobody knows which way up its label image was drawn.
        what = f"is turned by its EXIF orientation {orientation}"
        raise refuse(path, what, need="orientation 1", hint="save it upright as PNG")
