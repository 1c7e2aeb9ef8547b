"""The picture to look at: the channels as one colour composite, each cell outlined in the colour of its class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cellvision.bundle import Channel
from cellvision.errors import ConfigError, explain
from cellvision.runtime.cells import Cells, index_classes
from cellvision.runtime.pictures.marks import WHITE, Colour, Marks, add_legend, choose_colour, draw_marks

LARGEST_OVERVIEW_PX = 3000
_STAINS = {"nuclear": (0.35, 0.55, 1.0), "live": (0.1, 0.9, 0.1), "dead": (0.9, 0.1, 0.9), "": (0.8, 0.8, 0.8)}
_COLOUR_PICTURE = ("red", "green", "blue")
_PRIMARIES = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_BRIGHTEST = 0.7  # of full white, so that outlines stand out even on saturated cells
_IGNORED, _GREY = 255, (150, 150, 150)  # in place of a class id, and its colour
_LOW, _HIGH = 1.0, 99.8  # percentiles shown as black and as brightest


class Overview:
    """A picture of an image of any size, at most LARGEST_OVERVIEW_PX long, collected from bands of its rows.

    Larger images are shrunk by a whole number: counts by their mean, outlines by "any in the block", so that no cell
    disappears.
    """

    def __init__(self, *, shape: tuple[int, int], channels: tuple[Channel, ...]) -> None:
        """Start for an image of ``shape`` (H, W) with these channels."""
        self.step = -(-max(shape) // LARGEST_OVERVIEW_PX)
        self._shape = shape
        self._channels = channels
        height, width = (-(-length // self.step) for length in shape)
        self._sums = np.zeros((len(channels), height, width), np.float32)
        self._outlines = np.zeros((height, width), np.uint8)

    def add_image(self, top: int, rows: np.ndarray) -> None:
        """Take in rows top, top + 1, .. of the image: (C, h, W) raw counts, channels as given at the start."""
        place = self._locate(top, rows.shape[1])
        for total, plane in zip(self._sums, rows, strict=True):
            total[place] += self._shrink(np.add, top, plane.astype(np.float32))

    def add_labels(self, top: int, rows: np.ndarray, class_of_label: np.ndarray) -> None:
        """Take in rows top, top + 1, .. of the label image.

        Args:
            top: first row.
            rows: (h, W) integers, 0 = background.
            class_of_label: (N + 1,) class ids by label, [0] for the background.
        """
        place = self._locate(top, len(rows))
        classes = np.where(find_outlines(rows), class_of_label[rows], 0).astype(np.uint8)
        np.maximum(self._outlines[place], self._shrink(np.maximum, top, classes), out=self._outlines[place])

    def add_ignored(self, top: int, rows: np.ndarray) -> None:
        """Take in rows top, top + 1, .. of a label image, (h, w) integers: cells that do not count, outlined grey."""
        self.add_labels(top, rows, np.full(int(rows.max(initial=0)) + 1, _IGNORED))

    def render(self, cells: Cells, *, marks: Marks | None = None) -> np.ndarray:
        """(h, w, 3) uint8: composite, outlines, and below them a line with the counts of ``cells``.

        Args:
            cells: of the whole image.
            marks: what to write at the cells; None for nothing.

        Raises:
            ConfigError: a scale bar is wanted, and the cells' pixel size is unknown.
        """
        marks = marks or Marks()
        if marks.scale_bar and cells.pixel_size_um is None:
            raise ConfigError(
                explain(got="a scale bar and no pixel size", need="the edge of a pixel", hint="pixel_size_um=0.65")
            )
        colours = {i: choose_colour(cells.classes, i) for i in range(1, len(cells.classes))}
        picture = self.draw(colours | {_IGNORED: _GREY})
        picture, scale = draw_marks(picture, cells, marks, step=self.step)
        parts = [
            (f"{name} {cells.count(name)}", choose_colour(cells.classes, i)) for i, name in enumerate(cells.classes)
        ]
        if cells.has_viability:
            parts.append((format_viability(cells), WHITE))
        if (self._outlines == _IGNORED).any():
            parts.append(("does not count", _GREY))
        bar = scale / cells.pixel_size_um if marks.scale_bar and cells.pixel_size_um else None
        return add_legend(picture, parts[1:], px_per_um=bar)

    def draw(self, colours: Mapping[int, Colour]) -> np.ndarray:
        """(h, w, 3) uint8: composite and outlines, without anything written.

        Args:
            colours: by class id; outlines of other classes are left out.
        """
        picture = np.zeros((*self._outlines.shape, 3), np.uint8)
        down, across = (np.diff(np.append(np.arange(0, length, self.step), length)) for length in self._shape)
        planes = [plane / (down[:, None] * across).astype(np.float32) for plane in self._sums]
        tints, stretched = self._tint(planes)
        for index in range(3):
            colour = sum((tint[index] * plane for tint, plane in zip(tints, stretched, strict=True)), np.float32(0))
            picture[..., index] = np.minimum(colour, 1.0) * (255 * _BRIGHTEST)
        for class_id, outline in colours.items():
            picture[self._outlines == class_id] = outline
        return picture

    def _tint(self, planes: list[np.ndarray]) -> tuple[list[tuple[float, float, float]], list[np.ndarray]]:
        """A colour for each channel, and the channels stretched to 0..1: those of a colour picture by one range."""
        if tuple(channel.name for channel in self._channels) == _COLOUR_PICTURE:
            return list(_PRIMARIES), list(_stretch(np.stack(planes)))
        if len(planes) == 1:
            return [(1.0, 1.0, 1.0)], [_stretch(planes[0])]
        return [_STAINS.get(channel.role, _STAINS[""]) for channel in self._channels], [_stretch(p) for p in planes]

    def _locate(self, top: int, rows: int) -> slice:
        return slice(top // self.step, (top + rows - 1) // self.step + 1)

    def _shrink(self, combine: np.ufunc, top: int, plane: np.ndarray) -> np.ndarray:
        if self.step == 1:
            return plane
        columns = np.arange(0, plane.shape[1], self.step)
        rows = np.maximum(np.arange(top // self.step, (top + len(plane) - 1) // self.step + 1) * self.step - top, 0)
        return combine.reduceat(combine.reduceat(plane, columns, axis=1), rows, axis=0)


def draw_overlay(
    image: np.ndarray,
    cells: Cells,
    *,
    channels: tuple[Channel, ...],
    marks: Marks | None = None,
    ignored: np.ndarray | None = None,
) -> np.ndarray:
    """The picture of an image in memory, (h, w, 3) uint8; see Overview.

    Args:
        image: (C, H, W) raw counts.
        cells: with their label image.
        channels: of the image, in order; roles decide the colours.
        marks: what to write at the cells; None for nothing.
        ignored: (H, W) integers, label image of cells that do not count, outlined in grey; None for none.

    Raises:
        ConfigError: a scale bar is wanted, and the cells' pixel size is unknown.
    """
    assert cells.label_image is not None, "cells were streamed to a file"
    overview = Overview(shape=cells.shape, channels=channels)
    overview.add_image(0, image)
    overview.add_labels(0, cells.label_image, index_classes(cells))
    if ignored is not None:
        overview.add_ignored(0, ignored)
    return overview.render(cells, marks=marks)


def find_outlines(labels: np.ndarray) -> np.ndarray:
    """True for cell pixels with an edge to another label; beyond the rows at hand everything counts as equal."""
    outline = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    outline[1:] |= down
    outline[:-1] |= down
    outline[:, 1:] |= across
    outline[:, :-1] |= across
    return outline & (labels > 0)


def _stretch(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, [_LOW, _HIGH]).astype(np.float32)
    return np.clip((plane - low) / max(high - low, np.float32(1e-6)), 0.0, 1.0)


def format_viability(cells: Cells) -> str:
    """The viability of a field in words, e.g. "viability 90.0 % (69.9 to 97.2)"."""
    found = cells.viability()
    if found.viability is None or found.low is None or found.high is None:
        return "viability undefined (no cells)"
    return f"viability {100 * found.viability:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
