"""One image on its way through a bundle: where its pixels come from, and the tiles it is worked on in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cellvision.runtime.cell_meter import cut_bands
from cellvision.runtime.graphs.inputs import InputMatch
from cellvision.runtime.tiles.tiling import Span, Tile, plan_spans

ReadRows = Callable[[int, int], np.ndarray]
"""From (top, bottom) to the image's rows, (C, bottom - top, W) raw counts."""

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageJob:
    """One image to find the cells of.

    Attributes:
        read_rows: gives the image's rows; may be asked for the same rows again.
        shape: (H, W) of the image.
        match: how its counts become the graph's input.
        tile_px, overlap_px: see `plan_spans`.
        batch: at most so many tiles of one size go through the graph at once, >= 1.
        pixel_size_um: of the image, or None.
        progress: told after each tile, or None.
        notes: what to know of this way to work on it, a sentence each.
    """

    read_rows: ReadRows
    shape: tuple[int, int]
    match: InputMatch
    tile_px: int
    overlap_px: int
    batch: int = 1
    pixel_size_um: float | None = None
    progress: Progress | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Span]:
        """The rows of tiles, from top to bottom."""
        return plan_spans(self.shape[0], tile_px=self.tile_px, overlap_px=self.overlap_px)

    @property
    def columns(self) -> list[Span]:
        """The columns of tiles, from left to right."""
        return plan_spans(self.shape[1], tile_px=self.tile_px, overlap_px=self.overlap_px)

    @property
    def tiles(self) -> int:
        """Number of tiles in all."""
        return len(self.rows) * len(self.columns)

    def read_channels(self, top: int, bottom: int) -> np.ndarray:
        """Rows of the image, (C, bottom - top, W) raw counts, channels in the bundle's order."""
        return self.match.pick_channels(self.read_rows(top, bottom))

    def iterate_bands(self) -> Iterator[tuple[int, np.ndarray]]:
        """(top, (C, h, W) raw counts) of bands of a few rows that make up the image, read a row of tiles at a time."""
        for rows in self.rows:
            image = self.read_channels(rows.start, rows.stop)
            for top, bottom in cut_bands((rows.stop - rows.start, self.shape[1])):
                yield rows.start + top, image[:, top:bottom]

    def iterate_batches(self, rows: Span) -> Iterator[list[Tile]]:
        """The tiles of one row from left to right, in lists of at most ``batch`` with windows of one size."""
        tiles: list[Tile] = []
        for columns in self.columns:
            tile = Tile(rows=rows, columns=columns)
            if tiles and (len(tiles) == self.batch or tile.shape != tiles[0].shape):
                yield tiles
                tiles = []
            tiles.append(tile)
        yield tiles

    def to_input(self, tiles: list[Tile], band: np.ndarray) -> np.ndarray:
        """What the graph reads of tiles of one size, (B, C, h, w).

        Args:
            tiles: of one row.
            band: (C, h, W) raw counts of that row's windows.

        Raises:
            DataError: the image holds NaN or infinity.
        """
        return np.stack([self.match.to_input(band[:, :, tile.columns.window]) for tile in tiles])

    def tell(self, done: int) -> None:
        """Report that so many tiles are done."""
        if self.progress:
            self.progress(done, self.tiles)
