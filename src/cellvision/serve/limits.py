"""What one server takes on: sizes of uploads, images at once, images that wait."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from cellvision.data.images import ImageInfo, read_info
from cellvision.data.images.png_jpeg import JPEG_MAGIC, PNG_MAGIC
from cellvision.data.images.tiff import TIFF_MAGICS
from cellvision.errors import ConfigError, explain
from cellvision.serve.refusal import Refusal

_PIXELS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Whole numbers from 1 up; ``queue`` can be 0.

    Attributes:
        max_mib: size of an uploaded file.
        max_megapixels: height x width of an image, in millions of pixels; known from the header, before pixels are.
        workers: images worked on at once, each with as much memory as the predictor takes for one.
        queue: images that wait beside those; what comes on top is refused with status 503.
        upload_seconds: how long an upload may take, as it holds a place.

    Raises:
        ConfigError: a number out of its range.
    """

    max_mib: int = 256
    max_megapixels: int = 100
    workers: int = 1
    queue: int = 8
    upload_seconds: int = 60

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), int(field.name != "queue")
            if value < least:
                got, usual = f"{field.name}={value}", f"{field.name}={field.default}"
                raise ConfigError(explain(got=got, need=f"a whole number from {least} up", hint=usual))

    @property
    def max_bytes(self) -> int:
        """Of an uploaded file."""
        return self.max_mib * 2**20


def check_image(path: Path, *, limits: Limits) -> ImageInfo:
    """What the header of an uploaded file says.

    Raises:
        Refusal: 415 for a file that is no TIFF, PNG or JPEG, 413 for an image of too many pixels.
        DataError: the header is damaged, or of a kind that cannot be read.
    """
    with path.open("rb") as stream:
        start = stream.read(32)
    if not start.startswith((PNG_MAGIC, JPEG_MAGIC, *TIFF_MAGICS)):
        got = f"{path} is no image that can be read" if start else f"{path} is empty"
        raise Refusal(415, explain(got=got, need="TIFF, PNG or JPEG", hint="the file itself as the body, or as a form"))
    info = read_info(path)
    _, height, width = info.shape
    if height * width > limits.max_megapixels * _PIXELS:
        got = f"{path} is {height}x{width} px"
        need = f"at most {limits.max_megapixels} million pixels"
        raise Refusal(413, explain(got=got, need=need, hint="a part of it, or a server with more --max-megapixels"))
    return info
