"""What is known of an image file before its pixels are decoded, and the limits every file must keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cellvision.errors import CellvisionError, DataError, explain

MAX_SAMPLES = 2**31
"""Pixels x channels that one read may return; 2 GiB of uint8, 8 GiB of float32."""

UNSUSPICIOUS_SAMPLES = 2**28
SUSPICIOUS_RATIO = 500
"""Above UNSUSPICIOUS_SAMPLES, more samples per file byte than this mark a decompression bomb: an empty field of
16384 x 16384 pixels may compress as well as it likes, and real counts carry noise that does not compress."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """What a file's header says about its image.

    Attributes:
        path: the file.
        shape: (C, H, W) of what ``read_image`` returns; an alpha channel is not counted.
        dtype: "uint8", "uint16" or "float32": what ``read_image`` returns.
        channel_names: from OME-XML, one per channel, or None where the file does not name them all.
        pixel_size_um: edge of a pixel in micrometres, or None where the file does not say, says different things for
            x and y, or states a print resolution.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: str
    channel_names: tuple[str, ...] | None = None
    pixel_size_um: float | None = None


class PixelSource(Protocol):
    """An open image file of one format; ``ImageReader`` adds the checks that all formats share."""

    path: Path
    shape: tuple[int, int, int]
    """(C, H, W) as stored, an alpha channel included as the last."""
    dtype: np.dtype
    has_alpha: bool
    channel_names: tuple[str, ...] | None
    pixel_size_um: float | None

    def check_image(self) -> None:
        """Raise DataError if the stored numbers are not counts (palette indices, inverted grey)."""

    def read_counts(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """(C, bottom - top, right - left) in the stored dtype, alpha included."""

    def read_labels(self) -> np.ndarray:
        """(C, H, W) the stored whole numbers; palette indices stay indices."""

    def close(self) -> None:
        """Release the file."""


def check_size(path: Path, samples: int, *, max_pixels: int | None) -> None:
    """Raise DataError, before anything is decoded, if a read would return more than the limit.

    Args:
        path: the file, whose size in bytes shows whether the header is plausible.
        samples: pixels x channels of the read.
        max_pixels: the limit in samples, or None for MAX_SAMPLES and the test for decompression bombs.
    """
    limit = MAX_SAMPLES if max_pixels is None else max_pixels
    if samples > limit:
        raise DataError(
            explain(
                got=f"{path} holds {samples} samples (pixels x channels)",
                need=f"at most {limit} in one read",
                hint="read a TIFF piece by piece with open_image, or raise max_pixels",
            )
        )
    if max_pixels is None and samples > max(UNSUSPICIOUS_SAMPLES, SUSPICIOUS_RATIO * path.stat().st_size):
        raise DataError(
            explain(
                got=f"{path} claims {samples} samples in {path.stat().st_size} bytes",
                need=f"at least a byte per {SUSPICIOUS_RATIO} samples, or it may be a decompression bomb",
                hint=f"if you trust the file, max_pixels={samples}",
            )
        )


def refuse(path: Path, what: str, *, need: str, hint: str) -> DataError:
    """The error for a file that is intact but of a kind that cannot be read faithfully."""
    return DataError(explain(got=f"{path} {what}; unsupported", need=need, hint=hint))


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a DataError that names the file."""
    try:
        yield
    except CellvisionError:
        raise
    # Decoders raise almost anything on damaged bytes (KeyError, struct.error, SyntaxError, MemoryError ...).
    except Exception as error:
        raise DataError(
            explain(
                got=f"{path} cannot be decoded ({type(error).__name__}: {error})"[:400],
                need="an undamaged image file",
                hint="copy or export the file again",
            )
        ) from error
