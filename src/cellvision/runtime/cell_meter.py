"""Cells measured band by band, where image and labels are too large to measure in one piece."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cellvision.runtime.maps.splitting import CellSums, measure_cells, merge_sums

BAND_PX = 2**18
"""Pixels of a band; measuring takes some hundred bytes for each."""


class CellMeter:
    """Adds up the sums of N labelled cells over bands of rows."""

    def __init__(self, *, count: int, width: int) -> None:
        """Start for labels 1..count in an image of this width."""
        self._count = count
        self._width = width
        self._pieces: list[CellSums] = []
        self._cells: list[np.ndarray] = []

    def add(self, top: int, labels: np.ndarray, image: np.ndarray) -> None:
        """Take in rows top, top + 1, ..: (h, W) labels and (C, h, W) raw counts."""
        is_here = np.zeros(self._count + 1, bool)
        is_here[labels] = True
        is_here[0] = False
        cells = np.flatnonzero(is_here)
        local = np.zeros(self._count + 1, np.int32)  # so that a band costs what its own cells cost
        local[cells] = np.arange(1, len(cells) + 1)
        piece = measure_cells(local[labels], image, None, count=len(cells), origin=(top, 0), image_width=self._width)
        self._pieces.append(piece)
        self._cells.append(cells)

    def resolve(self) -> CellSums:
        """The sums of cells 1..count."""
        return merge_sums(self._pieces, np.concatenate(self._cells), self._count)


def cut_bands(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(top, bottom) of bands of at most BAND_PX pixels, or of one row, that make up an image of ``shape``.

    Example:
        >>> list(cut_bands((5, 2**17)))
        [(0, 2), (2, 4), (4, 5)]
    """
    rows = max(1, BAND_PX // shape[1])
    for top in range(0, shape[0], rows):
        yield top, min(top + rows, shape[0])
