"""A file that reads well until its last rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile


def write_damaged(path: Path, image: np.ndarray) -> None:
    """Write (C, H, W) counts as an OME-TIFF in strips of 32 rows, the last of which cannot be decoded."""
    tifffile.imwrite(path, image, photometric="minisblack", compression="zlib", rowsperstrip=32, ome=True)
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[0].dataoffsets[-1]
    with path.open("r+b") as stream:
        stream.seek(last)
        stream.write(b"damaged!")
