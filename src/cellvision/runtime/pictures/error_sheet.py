"""A picture of what went wrong: wrong cells outlined by the kind of their error, and the largest of them enlarged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cellvision.bundle import Channel
from cellvision.errors import DataError, explain
from cellvision.runtime.pictures.cell_errors import CellErrors, classify_errors
from cellvision.runtime.pictures.marks import WHITE, Colour, add_legend, stack_pictures, write_centred
from cellvision.runtime.pictures.overlay import Overview, find_outlines

KIND_COLOURS: dict[str, Colour] = {
    "inexact": (0, 200, 130),
    "missed": (255, 215, 0),
    "false": (255, 80, 30),
    "merged": (80, 180, 255),
    "split": (255, 0, 255),
}
"""Where two outlines share a pixel, the kind further down is seen."""

_KIND_WORDS = {
    "inexact": "IoU below 0.5",
    "missed": "nothing found",
    "false": "no cell there",
    "merged": "several cells as one",
    "split": "one cell as several",
}

_GREY = (125, 125, 125)
_SHORTEST_SIDE_PX, _LARGEST_ZOOM = 720, 4
_TILE_PX, _CAPTION_PX, _GAP_PX = 220, 18, 4
_MARGIN, _SMALLEST_WINDOW_PX = 1.5, 32


@dataclass(frozen=True, kw_only=True, eq=False)
class ErrorField:
    """One field, its truth and what was predicted.

    Attributes:
        name: written below the picture.
        image: (C, H, W) raw counts.
        pred_label_image, true_label_image: (H, W) integers, 0 = background, any other number = one cell.
        ignore: (H, W) bool, pixels of unknown truth, or None.
    """

    name: str
    image: np.ndarray
    pred_label_image: np.ndarray
    true_label_image: np.ndarray
    ignore: np.ndarray | None = None

    @cached_property
    def errors(self) -> CellErrors:
        """What became of each cell; ShapeError if the label images differ in size."""
        return classify_errors(self.pred_label_image, self.true_label_image, ignore=self.ignore)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fault:
    """One wrong place: its kind, the labels that take part, and its rank among those of its kind."""

    kind: str
    pred: np.ndarray
    true: np.ndarray
    area_px: int


def draw_error_sheet(fields: Sequence[ErrorField], *, channels: tuple[Channel, ...], crops: int = 6) -> np.ndarray:
    """(h, w, 3) uint8: for each field its picture, its worst places beside it, and a legend with counts below.

    In the picture a missed, split or inexact cell is outlined as in the truth, a false or merged one as predicted;
    cells without an error have no outline. In the enlarged places predictions have the colour of the error, true cells
    are white (a missed one has the colour of its error), and predictions that take no part are grey. The places are
    the largest cells of each kind in turn; their captions tell the kind and the middle, x and y in px.

    Args:
        fields: one or a few; one below the other.
        channels: of the images, in order.
        crops: most enlarged places per field; 0 for none.

    Raises:
        DataError: no field.
        ShapeError: the label images of a field differ in size.
    """
    if not fields:
        raise DataError(explain(got="an error sheet of no field", need="one or more", hint="fields[:3]"))
    return stack_pictures([_draw_field(field, channels, crops) for field in fields], axis=0)


def _draw_field(field: ErrorField, channels: tuple[Channel, ...], crops: int) -> np.ndarray:
    errors = field.errors
    kinds = list(KIND_COLOURS)
    overview = Overview(shape=field.image.shape[1:], channels=channels)
    overview.add_image(0, field.image)
    plain = overview.draw({})
    split, merged = (np.array(list(groups), np.int64) for groups in (errors.split, errors.merged))
    for label_image, shown in (
        (field.true_label_image, {"inexact": errors.inexact[:, 1], "missed": errors.missed, "split": split}),
        (field.pred_label_image, {"false": errors.false, "merged": merged}),
    ):
        labels, dense = np.unique(np.append(0, label_image), return_inverse=True)
        kind_of_label = np.zeros(len(labels), np.uint8)
        for kind, wrong in shown.items():
            kind_of_label[np.isin(labels, wrong)] = kinds.index(kind) + 1
        overview.add_labels(0, dense[1:].reshape(label_image.shape), kind_of_label)
    picture = overview.draw({index + 1: colour for index, colour in enumerate(KIND_COLOURS.values())})
    zoom = int(np.clip(_SHORTEST_SIDE_PX // max(picture.shape[:2]), 1, _LARGEST_ZOOM))
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    places = [
        _draw_place(field, plain, fault, step=overview.step) for fault in list(_rank_faults(field, errors))[:crops]
    ]
    counts = errors.counts
    parts = [(field.name, WHITE), (f"{counts['found']} of {errors.true_count} cells found (no outline)", WHITE)]
    parts += [
        (f"{kind} {counts[kind]} ({_KIND_WORDS[kind]})", colour) for kind, colour in reversed(KIND_COLOURS.items())
    ]
    if places:
        parts += [("enlarged, right: true cells white", WHITE), ("other predictions grey", _GREY)]
        rows = max(1, picture.shape[0] // len(places[0]))
        columns = [stack_pictures(places[i : i + rows], axis=0) for i in range(0, len(places), rows)]
        picture = stack_pictures([picture, *columns], axis=1)
    return add_legend(picture, parts)


def _rank_faults(field: ErrorField, errors: CellErrors) -> Iterator[_Fault]:
    """All faults, the largest of each kind first, then the second largest of each, and so on."""
    area_of = [
        dict(zip(*(values.tolist() for values in np.unique(labels, return_counts=True)), strict=True))
        for labels in (field.pred_label_image, field.true_label_image)
    ]
    none = np.zeros(0, np.int64)
    labels: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        "merged": [(np.array([pred]), true) for pred, true in errors.merged.items()],
        "split": [(pred, np.array([true])) for true, pred in errors.split.items()],
        "missed": [(none, errors.missed[i : i + 1]) for i in range(len(errors.missed))],
        "false": [(errors.false[i : i + 1], none) for i in range(len(errors.false))],
        "inexact": [(pair[:1], pair[1:]) for pair in errors.inexact],
    }
    by_kind = []
    for kind, pairs in labels.items():
        faults = []
        for pred, true in pairs:
            areas = [area_of[side][int(label)] for side, group in enumerate((pred, true)) for label in group]
            faults.append(_Fault(kind=kind, pred=pred, true=true, area_px=sum(areas)))
        by_kind.append(sorted(faults, key=lambda fault: -fault.area_px))
    for turn in zip_longest(*by_kind):
        yield from (fault for fault in turn if fault is not None)


def _draw_place(field: ErrorField, picture: np.ndarray, fault: _Fault, *, step: int) -> np.ndarray:
    """(h, w, 3) uint8, the same size for all: the surroundings of a fault, with a caption below."""
    pred, true = field.pred_label_image, field.true_label_image
    y, x = np.nonzero(np.isin(pred, fault.pred) | np.isin(true, fault.true))
    middle = f"x {int(x.min() + x.max()) // 2} y {int(y.min() + y.max()) // 2}"
    pred, true, y, x = pred[::step, ::step], true[::step, ::step], y // step, x // step
    side = max(_SMALLEST_WINDOW_PX, int(_MARGIN * (1 + max(np.ptp(y), np.ptp(x)))))
    window = tuple(_place(values, side, length) for values, length in zip((y, x), pred.shape, strict=True))
    size = [max(1, round((part.stop - part.start) * _TILE_PX / side)) for part in window]
    tile = np.asarray(Image.fromarray(picture[window]).resize(size[::-1], Image.Resampling.BILINEAR)).copy()
    rows, columns = (np.arange(new) * (part.stop - part.start) // new for new, part in zip(size, window, strict=True))
    near_pred, near_true = (labels[window][rows][:, columns] for labels in (pred, true))
    colour = KIND_COLOURS[fault.kind]
    tile[_outline(near_pred, np.setdiff1d(near_pred, fault.pred))] = _GREY
    tile[_outline(near_true, fault.true)] = colour if fault.kind == "missed" else WHITE
    tile[_outline(near_pred, fault.pred)] = colour
    canvas = Image.new("RGB", (_TILE_PX + _GAP_PX, _TILE_PX + _CAPTION_PX))
    canvas.paste(Image.fromarray(tile), (_GAP_PX, 0))
    several = {"merged": f" {len(fault.true)}", "split": f" in {len(fault.pred)}"}.get(fault.kind, "")
    text = f"{fault.kind}{several}, {middle}"
    place = (_GAP_PX + _TILE_PX / 2, _TILE_PX + _CAPTION_PX / 2)
    write_centred(ImageDraw.Draw(canvas), place, text, ImageFont.load_default(size=12), within=canvas.size)
    return np.asarray(canvas)


def _place(values: np.ndarray, side: int, length: int) -> slice:
    """A window of ``side``, the values in its middle, moved and cut to lie in 0..length."""
    start = int(values.min() + values.max() + 1 - side) // 2
    start = max(0, min(start, length - side))
    return slice(start, min(start + side, length))


def _outline(label_image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(h, w) bool, lines of 2 px along the rims of these cells, inside them and one pixel beyond."""
    rim = find_outlines(np.where(np.isin(label_image, labels), label_image, 0))
    thick = rim.copy()
    thick[1:] |= rim[:-1]
    thick[:, 1:] |= rim[:, :-1]
    return thick
