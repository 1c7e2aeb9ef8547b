"""The picture to look at: the channels as one colour composite, each cell outlined in the colour of its class."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cellvision.bundle import Channel
from cellvision.runtime.cells import Cells

LARGEST_OVERVIEW_PX = 3000
# Green and magenta are told apart with every common kind of colour blindness; green and red are not.
_LIVE, _DEAD = (0, 255, 0), (255, 0, 255)
_OTHERS = ((230, 159, 0), (86, 180, 233), (240, 228, 66), (0, 158, 115), (213, 94, 0), (204, 121, 167))
_STAINS = {"nuclear": (0.35, 0.55, 1.0), "live": (0.1, 0.9, 0.1), "dead": (0.9, 0.1, 0.9), "": (0.8, 0.8, 0.8)}
_WHITE = (1.0, 1.0, 1.0)
_BRIGHTEST = 0.7  # of full white, so that outlines stand out even on saturated cells
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
        classes = np.where(_find_outlines(rows), class_of_label[rows], 0).astype(np.uint8)
        np.maximum(self._outlines[place], self._shrink(np.maximum, top, classes), out=self._outlines[place])

    def render(self, cells: Cells) -> np.ndarray:
        """(h, w, 3) uint8: composite, outlines, and below them a line with the counts of ``cells``."""
        picture = np.zeros((*self._outlines.shape, 3), np.uint8)
        down, across = (np.diff(np.append(np.arange(0, length, self.step), length)) for length in self._shape)
        stretched = [_stretch(plane / (down[:, None] * across).astype(np.float32)) for plane in self._sums]
        tints = (
            [_STAINS.get(channel.role, _STAINS[""]) for channel in self._channels] if len(stretched) > 1 else [_WHITE]
        )
        for index in range(3):
            colour = sum((tint[index] * plane for tint, plane in zip(tints, stretched, strict=True)), np.float32(0))
            picture[..., index] = np.minimum(colour, 1.0) * (255 * _BRIGHTEST)
        for class_id in range(1, len(cells.classes)):
            picture[self._outlines == class_id] = _choose_colour(cells.classes, class_id)
        return _add_legend(picture, cells)

    def _locate(self, top: int, rows: int) -> slice:
        return slice(top // self.step, (top + rows - 1) // self.step + 1)

    def _shrink(self, combine: np.ufunc, top: int, plane: np.ndarray) -> np.ndarray:
        if self.step == 1:
            return plane
        columns = np.arange(0, plane.shape[1], self.step)
        rows = np.maximum(np.arange(top // self.step, (top + len(plane) - 1) // self.step + 1) * self.step - top, 0)
        return combine.reduceat(combine.reduceat(plane, columns, axis=1), rows, axis=0)


def draw_overlay(image: np.ndarray, cells: Cells, *, channels: tuple[Channel, ...]) -> np.ndarray:
    """The picture of an image in memory, (h, w, 3) uint8; see Overview.

    Args:
        image: (C, H, W) raw counts.
        cells: with their label image.
        channels: of the image, in order; roles decide the colours.
    """
    assert cells.label_image is not None, "cells were streamed to a file"
    overview = Overview(shape=cells.shape, channels=channels)
    overview.add_image(0, image)
    overview.add_labels(0, cells.label_image, index_classes(cells))
    return overview.render(cells)


def index_classes(cells: Cells) -> np.ndarray:
    """(largest label + 1,) uint8: class id by label, 0 for the background and for labels that do not occur."""
    table = np.zeros(int(cells.label.max(initial=0)) + 1, np.uint8)
    table[cells.label] = cells.class_id
    return table


def _find_outlines(labels: np.ndarray) -> np.ndarray:
    """True for cell pixels with an edge to another label; beyond the rows at hand everything counts as equal."""
    outline = np.zeros(labels.shape, bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    outline[1:] |= down
    outline[:-1] |= down
    outline[:, 1:] |= across
    outline[:, :-1] |= across
    return outline & (labels > 0)


def _stretch(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, [_LOW, _HIGH])
    return np.clip((plane - low) / max(high - low, 1e-6), 0.0, 1.0)


def _choose_colour(classes: tuple[str, ...], class_id: int) -> tuple[int, int, int]:
    named = {"live": _LIVE, "dead": _DEAD}
    return named.get(classes[class_id], _OTHERS[(class_id - 1) % len(_OTHERS)])


def _add_legend(picture: np.ndarray, cells: Cells) -> np.ndarray:
    """The picture with a line below it: on top it would hide cells."""
    parts = [
        (f"{name} {cells.count(name)}", _choose_colour(cells.classes, i)) for i, name in enumerate(cells.classes) if i
    ]
    if cells.kind == "viability":
        parts.append((format_viability(cells), (255, 255, 255)))
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=max(12, width // 50))
    boxes = [font.getbbox(text) for text, _ in parts]
    gap, line = 12, int(max(box[3] for box in boxes)) + 8
    canvas = Image.new("RGB", (max(width, int(sum(box[2] + gap for box in boxes)) + gap), height + line))
    canvas.paste(Image.fromarray(picture), (0, 0))
    pen, x = ImageDraw.Draw(canvas), gap
    for (text, colour), box in zip(parts, boxes, strict=True):
        pen.text((x, height + 2), text, fill=colour, font=font)
        x += int(box[2]) + gap
    return np.asarray(canvas)


def format_viability(cells: Cells) -> str:
    """The viability of a field in words, e.g. "viability 90.0 % (69.9 to 97.2)"."""
    found = cells.viability()
    if found.viability is None or found.low is None or found.high is None:
        return "viability undefined (no cells)"
    return f"viability {100 * found.viability:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
