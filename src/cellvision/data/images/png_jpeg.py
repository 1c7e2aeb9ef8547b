"""PNG and JPEG files: headers by Pillow, which never sees more than the header of a PNG, pixels at full depth."""

from __future__ import annotations

import io
import struct
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
            with decoding(self.path), self.path.open("rb") as stream:
                pixels = np.array(JpegImageFile(stream))
            self._pixels = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0)
        return self._pixels[:, top:bottom, left:right]

    def read_labels(self) -> np.ndarray:
        """Raise DataError: JPEG changes numbers."""
        what = "is a label image in JPEG, which changes the labels"
        raise refuse(self.path, what, need="PNG or TIFF", hint="export it as PNG")

    def close(self) -> None:
        """Let the decoded pixels go."""
        self._pixels = None


def _check_upright(path: Path, header: PngImageFile | JpegImageFile) -> None:
    with decoding(path):
        # The base class's method: that of PngImageFile decodes the whole image in search of late metadata.
        orientation = Image.Image.getexif(header).get(_EXIF_ORIENTATION, 1)
    if orientation != 1:
        # Viewers disagree on turning it, so nobody knows which way up its label image was drawn.
        what = f"is turned by its EXIF orientation {orientation}"
        raise refuse(path, what, need="orientation 1", hint="save it upright as PNG")
