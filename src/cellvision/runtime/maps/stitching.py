"""Cells found tile by tile become one set of cells: none cut at a seam, none counted twice, none lost.

Every pixel is labelled by the one tile whose core holds it, so no pixel can be claimed twice. What remains is to say
which label of one tile is which label of its neighbour. Both tiles see the surroundings of their common seam, so both
have drawn the same cells there; the labels that agree are pieces of one cell. This needs no guess of the largest cell
size (a cell may span any number of tiles) and does not depend on the order of the tiles. Rejected: giving each cell to
the tile that holds its centre; cells larger than the overlap, or bent ones, then fall between two tiles.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cellvision.runtime.maps.splitting import CellSums, merge_sums
from cellvision.runtime.tiles.tiling import Tile


class Stitcher:
    """Gives the cells of all tiles provisional numbers, and remembers which numbers are the same cell.

    Tiles are added row by row, left to right. Memory grows with the number of cells and the image's width only.
    """

    def __init__(self, *, width: int, overlap_px: int) -> None:
        """Start for an image of ``width`` pixels; tiles compare their labels within overlap_px / 2 of a seam."""
        self.count = 0
        self._width = width
        # Half: nearer to its window's edge a tile sees cut cells, and its labels there are not worth comparing.
        self._zone = max(1, overlap_px // 2)
        self._left = self._above = np.zeros((0, 0), np.int32)  # labels around the seams to the tiles already seen
        self._below: list[np.ndarray] = []
        self._links: list[np.ndarray] = []

    def add(self, tile: Tile, label_image: np.ndarray) -> np.ndarray:
        """Provisional numbers of the tile's core, (core height, core width) int32, 0 = background.

        Args:
            tile: the next tile.
            label_image: (window height, window width) int32, the tile's own labels 1..n.
        """
        ids = np.where(label_image > 0, label_image + self.count, 0).astype(np.int32)
        self.count += int(label_image.max(initial=0))
        rows, columns, zone = tile.rows, tile.columns, self._zone
        top, bottom = rows.start - rows.window_start, rows.stop - rows.window_start
        left, right = columns.start - columns.window_start, columns.stop - columns.window_start
        if columns.start > 0:
            self._compare(self._left, ids[top:bottom, left - zone : left + zone])
        if rows.start > 0:
            self._compare(self._above[:, columns.start : columns.stop].T, ids[top - zone : top + zone, left:right].T)
        self._left = ids[top:bottom, max(0, right - zone) : right + zone].copy()
        self._below.append(ids[max(0, bottom - zone) : bottom + zone, left:right].copy())
        if columns.stop == self._width:
            self._above, self._below = np.concatenate(self._below, axis=1), []
        return ids[top:bottom, left:right]

    def resolve(self, pieces: list[CellSums], *, min_area_px: int) -> tuple[np.ndarray, CellSums]:
        """The final numbering and the sums of the whole cells.

        Args:
            pieces: one per added tile in the same order, each with all labels of its window, summed over its core.
            min_area_px: smaller cells are dropped: what is left where two tiles disagreed about a sliver.

        Returns:
            (count + 1,) int32 table from provisional to final numbers 1..N in raster order of the first pixel, 0 for
            what is dropped; and the sums of cells 1..N.
        """
        links = np.concatenate([np.zeros((0, 2), np.int64), *self._links]) - 1
        graph = coo_matrix((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(self.count, self.count))
        groups, group_of = connected_components(graph, directed=False) if self.count else (0, np.zeros(0, np.int64))
        sums = merge_sums(pieces, group_of.astype(np.int64) + 1, groups)
        kept = np.flatnonzero(sums.area >= min_area_px)
        kept = kept[np.argsort(sums.first[kept])]
        number = np.zeros(groups, np.int32)
        number[kept] = np.arange(1, kept.size + 1)
        table = np.concatenate([np.zeros(1, np.int32), number[group_of]])
        return table, CellSums(**{name: values[kept] for name, values in vars(sums).items()})

    def _compare(self, one: np.ndarray, other: np.ndarray) -> None:
        """Record which numbers of two neighbours are one cell, from the columns around their seam, its place known.

        The same cell: the two overlap by more than half of the smaller, and they do so on the seam itself. Cells that
        only come near the seam lie in one core as a whole and need no partner.
        """
        base = self.count + 1
        shared = np.where((one > 0) & (other > 0), one.astype(np.int64) * base + other, 0)
        pairs, counts = np.unique(shared[shared > 0], return_counts=True)
        on_seam = np.isin(pairs, shared[:, self._zone - 1 : self._zone + 1])
        first, second = np.divmod(pairs, base)
        smaller = np.minimum(_count(one, first), _count(other, second))
        self._links.append(np.stack([first, second], axis=1)[on_seam & (2 * counts > smaller)])


def _count(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """How often each of ``wanted`` occurs in ``ids``."""
    values, counts = np.unique(ids, return_counts=True)
    return counts[np.searchsorted(values, wanted)]
