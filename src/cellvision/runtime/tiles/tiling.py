"""Where an image is cut into tiles, and how large a tile may be within a stated memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cellvision.errors import ConfigError, explain

SMALLEST_TILE_PX = 64
DENSE_CELL_PX = 32**2
"""Pixels per cell of a dense field: nobody knows before the work how many there are. Of 337 fluorescence fields of
nuclei (DSB 2018), up to a tenth are denser, by up to 1.6 times; a window of such a field takes more memory than was
planned."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Along one axis: the core a tile answers for, and the window it looks at; half-open pixel ranges."""

    start: int
    stop: int
    window_start: int
    window_stop: int

    @property
    def core(self) -> slice:
        """To index the image with."""
        return slice(self.start, self.stop)

    @property
    def window(self) -> slice:
        """To index the image with."""
        return slice(self.window_start, self.window_stop)

    @property
    def core_in_window(self) -> slice:
        """To index an array of the window with."""
        return slice(self.start - self.window_start, self.stop - self.window_start)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One piece of the grid: its core rows and columns with their windows."""

    rows: Span
    columns: Span

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the window."""
        rows, columns = self.rows, self.columns
        return rows.window_stop - rows.window_start, columns.window_stop - columns.window_start


def plan_spans(length: int, *, tile_px: int, overlap_px: int) -> list[Span]:
    """Spans that cover ``length`` pixels: cores side by side without gaps, windows with ``overlap_px`` on both sides.

    All windows begin at multiples of ``tile_px``, and only the last can be shorter than tile_px + 2 * overlap_px:
    the first and last core reach to the image's edge and are larger by the margin they do not need. A length up to
    one window is one span.

    Args:
        length: pixels along the axis, >= 1.
        tile_px: distance between tiles, a multiple of the net's stride.
        overlap_px: margin on each side, a multiple of the net's stride.

    Example:
        >>> [(s.start, s.stop, s.window_start, s.window_stop) for s in plan_spans(100, tile_px=32, overlap_px=8)]
        [(0, 40, 0, 48), (40, 72, 32, 80), (72, 100, 64, 100)]
    """
    count = max(1, -(-(length - 2 * overlap_px) // tile_px))
    return [
        Span(
            start=i * tile_px + overlap_px if i > 0 else 0,
            stop=(i + 1) * tile_px + overlap_px if i < count - 1 else length,
            window_start=i * tile_px,
            window_stop=min(length, (i + 1) * tile_px + 2 * overlap_px),
        )
        for i in range(count)
    ]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Memory that predicting one image takes, in bytes, beside what is already in use.

    Attributes:
        per_window_px: for each pixel of a tile's window: the net, and splitting.
        per_band_px: for each pixel of the full-width rows of one tile row, image and labels.
        fixed: independent of the tile size, e.g. a picture that can only be decoded whole.
        windows: that are worked on at once.
        per_cell: for each cell that is found in a window, of which there may be one per DENSE_CELL_PX.
        most_cells: more than these are never found in a window.
    """

    per_window_px: float
    per_band_px: float
    fixed: float
    windows: int = 1
    per_cell: float = 0.0
    most_cells: int = 0

    def compute_total(self, shape: tuple[int, int], *, tile_px: int, overlap_px: int) -> float:
        """Bytes for an image of ``shape`` (H, W) at this tile size."""
        rows, columns = (min(length, tile_px + 2 * overlap_px) for length in shape)
        windows = min(self.windows, -(-shape[1] // tile_px))
        cells = min(self.most_cells, rows * columns / DENSE_CELL_PX)
        per_window = rows * columns * self.per_window_px + cells * self.per_cell
        return self.fixed + windows * per_window + rows * shape[1] * self.per_band_px


def choose_tile_px(
    shape: tuple[int, int],
    *,
    largest_px: int,
    smallest_px: int,
    stride: int,
    overlap_px: int,
    costs: Costs,
    memory_mib: int,
) -> int:
    """The largest tile up to ``largest_px`` that keeps an image of ``shape`` within ``memory_mib``.

    Args:
        shape: (H, W) of the image.
        largest_px: where to begin, a multiple of the stride.
        smallest_px: where to stop, if it is smaller; equal to largest_px where the caller chose the size.
        stride: of the net; results are multiples of it.
        overlap_px: margin around a tile.
        costs: see Costs.
        memory_mib: budget.

    Raises:
        ConfigError: even the smallest tile does not fit; the text says how much memory it would take.
    """
    total_mib = 0
    for tile_px in range(largest_px, min(smallest_px, largest_px) - 1, -stride):
        total_mib = math.ceil(costs.compute_total(shape, tile_px=tile_px, overlap_px=overlap_px) / 2**20)
        if total_mib <= memory_mib:
            return tile_px
    raise ConfigError(
        explain(
            got=f"an image of {shape[0]}x{shape[1]} px takes {total_mib} MiB in tiles of {tile_px} px",
            need=f"at most memory_mib={memory_mib}",
            hint=f"memory_mib={total_mib}, a smaller tile_px, or save the image as tiled TIFF",
        )
    )


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value`` and at least one multiple."""
    return max(1, -(-value // multiple)) * multiple
