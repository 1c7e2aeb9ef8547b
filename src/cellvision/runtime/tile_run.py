"""One image through the graph, tile by tile, band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cellvision.runtime.inputs import InputMatch
from cellvision.runtime.instances import CellSums, measure_cells, split_cells
from cellvision.runtime.session import Session
from cellvision.runtime.stitching import Stitcher
from cellvision.runtime.tiling import Span, Tile, plan_spans

ReadRows = Callable[[int, int], np.ndarray]
"""From (top, bottom) to the image's rows, (C, bottom - top, W) raw counts."""

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""

KeepMaps = Callable[[Tile, np.ndarray], None]
"""Called with a tile and the (K, h, w) class probabilities of its core."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """The full-width core rows of one row of tiles.

    Attributes:
        top: first row.
        image: (C, h, W) raw counts, channels in the bundle's order.
        ids: (h, W) int32, provisional cell numbers; `TileRun.resolve` tells the final ones.
    """

    top: int
    image: np.ndarray
    ids: np.ndarray


class TileRun:
    """The work on one image. Iterate over the bands to the end, then `resolve` the numbers of the cells."""

    def __init__(
        self, session: Session, match: InputMatch, *, shape: tuple[int, int], tile_px: int, overlap_px: int
    ) -> None:
        """Plan the tiles of an image of ``shape`` (H, W); see `plan_spans`."""
        self._session = session
        self._match = match
        self.shape = shape
        self._rows, self._columns = (plan_spans(n, tile_px=tile_px, overlap_px=overlap_px) for n in shape)
        self._stitcher = Stitcher(width=shape[1], overlap_px=overlap_px)
        self._pieces: list[CellSums] = []

    @property
    def tiles(self) -> int:
        """Number of tiles in all."""
        return len(self._rows) * len(self._columns)

    def iterate_bands(
        self, read_rows: ReadRows, *, progress: Progress | None = None, keep_maps: KeepMaps | None = None
    ) -> Iterator[Band]:
        """Run the graph and split cells, one row of tiles after the other."""
        for rows in self._rows:
            window = self._match.pick_channels(read_rows(rows.window_start, rows.window_stop))
            ids = np.zeros((rows.stop - rows.start, self.shape[1]), np.int32)
            for columns in self._columns:
                tile = Tile(rows=rows, columns=columns)
                image = window[:, :, columns.window_start : columns.window_stop]
                ids[:, columns.start : columns.stop] = self._run_tile(tile, image, keep_maps)
                if progress:
                    progress(len(self._pieces), self.tiles)
            yield Band(top=rows.start, image=window[:, _find_core(rows)], ids=ids)

    def resolve(self) -> tuple[np.ndarray, CellSums]:
        """The (ids + 1,) int32 table from provisional to final numbers, and the sums of the final cells."""
        return self._stitcher.resolve(self._pieces, min_area_px=self._session.manifest.splitting.min_area_px)

    def _run_tile(self, tile: Tile, image: np.ndarray, keep_maps: KeepMaps | None) -> np.ndarray:
        """Provisional numbers of the tile's core, from its window's image."""
        maps = self._session.run(self._match.to_input(image))
        label_image = split_cells(maps.probabilities, maps.distance, splitting=self._session.manifest.splitting)
        core = (_find_core(tile.rows), _find_core(tile.columns))
        sums = measure_cells(
            label_image[core],
            image[:, *core],
            maps.probabilities[:, *core],
            count=int(label_image.max(initial=0)),
            origin=(tile.rows.start, tile.columns.start),
            image_width=self.shape[1],
        )
        self._pieces.append(sums)
        if keep_maps:
            keep_maps(tile, maps.probabilities[:, *core])
        return self._stitcher.add(tile, label_image)


def _find_core(span: Span) -> slice:
    return slice(span.start - span.window_start, span.stop - span.window_start)
