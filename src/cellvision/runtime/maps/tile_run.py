"""One image through a graph of maps, tile by tile, band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cellvision.runtime.graphs.map_session import Maps, MapSession
from cellvision.runtime.maps.splitting import CellSums, measure_cells, split_cells
from cellvision.runtime.maps.stitching import Stitcher
from cellvision.runtime.tiles.image_job import ImageJob
from cellvision.runtime.tiles.image_job import Progress as Progress
from cellvision.runtime.tiles.tiling import Tile

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

    def __init__(self, session: MapSession, job: ImageJob) -> None:
        """Start the work on an image."""
        self._session = session
        self._job = job
        self._stitcher = Stitcher(width=job.shape[1], overlap_px=job.overlap_px)
        self._pieces: list[CellSums] = []

    def iterate_bands(self, *, keep_maps: KeepMaps | None = None) -> Iterator[Band]:
        """Run the graph and split cells, one row of tiles after the other."""
        for rows in self._job.rows:
            band = self._job.read_channels(rows.window_start, rows.window_stop)
            ids = np.zeros((rows.stop - rows.start, self._job.shape[1]), np.int32)
            for tiles in self._job.iterate_batches(rows):
                batch = self._session.run_batch(self._job.to_input(tiles, band))
                for tile, maps in zip(tiles, batch, strict=True):
                    image = band[:, :, tile.columns.window]
                    ids[:, tile.columns.core] = self._split_tile(tile, image, maps, keep_maps)
                    self._job.tell(len(self._pieces))
            yield Band(top=rows.start, image=band[:, rows.core_in_window], ids=ids)

    def resolve(self) -> tuple[np.ndarray, CellSums]:
        """The (ids + 1,) int32 table from provisional to final numbers, and the sums of the final cells."""
        return self._stitcher.resolve(self._pieces, min_area_px=self._session.manifest.splitting.min_area_px)

    def _split_tile(self, tile: Tile, image: np.ndarray, maps: Maps, keep_maps: KeepMaps | None) -> np.ndarray:
        """Provisional numbers of the tile's core, from its window's image and maps."""
        label_image = split_cells(maps.probabilities, maps.distance, splitting=self._session.manifest.splitting)
        core = (tile.rows.core_in_window, tile.columns.core_in_window)
        sums = measure_cells(
            label_image[core],
            image[:, *core],
            maps.probabilities[:, *core],
            count=int(label_image.max(initial=0)),
            origin=(tile.rows.start, tile.columns.start),
            image_width=self._job.shape[1],
        )
        self._pieces.append(sums)
        if keep_maps:
            keep_maps(tile, maps.probabilities[:, *core])
        return self._stitcher.add(tile, label_image)
