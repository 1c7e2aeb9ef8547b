"""What can be written on and below a picture of cells: boxes, numbers, classes, scores, a legend, a scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cellvision.errors import ConfigError, explain
from cellvision.runtime.cells import Cells

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
WHITE = (255, 255, 255)
# Green and magenta are told apart with every common kind of colour blindness; green and red are not.
_LIVE, _DEAD = (0, 255, 0), (255, 0, 255)
_OTHERS = ((230, 159, 0), (86, 180, 233), (240, 228, 66), (0, 158, 115), (213, 94, 0), (204, 121, 167))
_LARGEST_ZOOM = 4
_LARGEST_PICTURE_PX = 3000
_TEXT_PX = 11  # height of the letters at a cell
_GAP = 12
_BAR_SHARE = 0.25  # of the picture's width, at most
_LEGEND_PX = 640  # a legend is as wide as its picture, or at most this where the picture is narrower
_CAPTION_PX = 13  # height of the letters above a picture, or more where it is wide


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What to write at each cell, besides its outline; nothing by default.

    Text stands in the middle of its cell, one line each for number, class and score, so that it hides no neighbour.

    Attributes:
        boxes: the box of the visible pixels.
        numbers: the label, as in the table of cells and the label image.
        class_names: the class.
        scores: the score with two digits; nothing for cells without.
        scale_bar: a bar of a round length below the picture; needs the pixel size.
        zoom: whole number by which the picture is enlarged; None enlarges it only for text, and so far that the text
            fits into the cell of median size, at most four times and to 3000 px.
    """

    boxes: bool = False
    numbers: bool = False
    class_names: bool = False
    scores: bool = False
    scale_bar: bool = False
    zoom: int | None = None

    def __post_init__(self) -> None:
        if self.zoom is not None and self.zoom < 1:
            raise ConfigError(explain(got=f"zoom={self.zoom}", need="a whole number from 1 up", hint="zoom=2"))


def choose_colour(classes: tuple[str, ...], class_id: int) -> Colour:
    """The colour of a class in every picture."""
    named = {"live": _LIVE, "dead": _DEAD}
    return named.get(classes[class_id], _OTHERS[(class_id - 1) % len(_OTHERS)])


def draw_marks(picture: np.ndarray, cells: Cells, marks: Marks, *, step: int = 1) -> tuple[np.ndarray, float]:
    """The picture with marks, enlarged where they ask for it, and its pixels per pixel of the image.

    Args:
        picture: (h, w, 3) uint8.
        cells: of the image.
        marks: what to draw; the scale bar is not drawn here, see `add_legend`.
        step: pixels of the image, per side, that became one of the picture.
    """
    texts = [_write_lines(cells, marks, index) for index in range(len(cells))]
    font = ImageFont.load_default(size=_TEXT_PX)
    zoom = marks.zoom or _choose_zoom(cells, texts, font, step, max(picture.shape[:2]))
    if zoom > 1:
        picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    scale = zoom / step
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    if marks.boxes:
        for box, class_id in zip(cells.bbox * scale, cells.class_id, strict=True):
            top, left, bottom, right = box
            # A box of a shrunk picture can be thinner than a pixel.
            edges = (left, top, max(left, right - 1), max(top, bottom - 1))
            pen.rectangle(edges, outline=choose_colour(cells.classes, int(class_id)))
    for index, text in enumerate(texts):
        if text:
            place = ((cells.centroid_x_px[index] + 0.5) * scale, (cells.centroid_y_px[index] + 0.5) * scale)
            write_centred(pen, place, text, font, within=canvas.size)
    return np.asarray(canvas), scale


def write_centred(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, font: Font, *, within: tuple[int, int]
) -> None:
    """White text with a black rim, readable on any ground.

    Args:
        pen: of the picture.
        place: (x, y) px of the text's middle; moved where the text would leave the picture.
        text: one or more lines.
        font: of the text.
        within: (width, height) px of the picture.
    """
    left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font, align="center", spacing=1)
    x, y = (
        max(1.0, min(middle - length / 2, size - 1 - length))
        for middle, length, size in zip(place, (right - left, bottom - top), within, strict=True)
    )
    corner = (x - left, y - top)
    pen.multiline_text(
        corner, text, font=font, align="center", spacing=1, fill=WHITE, stroke_width=1, stroke_fill=(0, 0, 0)
    )


def _write_lines(cells: Cells, marks: Marks, index: int) -> str:
    lines = []
    if marks.numbers:
        lines.append(str(cells.label[index]))
    if marks.class_names:
        lines.append(cells.classes[cells.class_id[index]])
    if marks.scores and cells.score is not None:
        lines.append(f"{cells.score[index]:.2f}")
    return "\n".join(lines)


def _choose_zoom(cells: Cells, texts: list[str], font: Font, step: int, longest_px: int) -> int:
    if not any(texts):
        return 1
    widest = max(font.getlength(line) for text in texts for line in text.split("\n"))
    highest = max(text.count("\n") + 1 for text in texts) * (_TEXT_PX + 2)
    cell_height, cell_width = np.median(cells.bbox[:, 2:] - cells.bbox[:, :2], axis=0) / step
    most = max(1, min(_LARGEST_ZOOM, _LARGEST_PICTURE_PX // longest_px))
    return int(np.clip(np.ceil(max(widest / cell_width, highest / cell_height)), 1, most))


def choose_bar_um(width_um: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten, in micrometres, that is at most a quarter of a picture's width.

    Example:
        >>> choose_bar_um(1000.0), choose_bar_um(83.2), choose_bar_um(0.3)
        (200.0, 20.0, 0.05)
    """
    most = width_um * _BAR_SHARE
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def add_legend(
    picture: np.ndarray, parts: Sequence[tuple[str, Colour]], *, px_per_um: float | None = None
) -> np.ndarray:
    """The picture with lines below it: on top they would hide cells. A text too long for a line loses its middle.

    Args:
        picture: (h, w, 3) uint8.
        parts: texts with their colours, from left to right, and in further lines where one is not enough.
        px_per_um: pixels of the picture per micrometre, for a scale bar at the end; None for no bar.
    """
    height, width = picture.shape[:2]
    font = ImageFont.load_default(size=max(12, width // 70))
    most = max(width, _LEGEND_PX)
    texts = [(shorten_text(text, font, most - 2 * _GAP), colour, 0) for text, colour in parts]
    if px_per_um is not None:
        length_um = choose_bar_um(width / px_per_um)
        # Pillow's own font has no letter for micro.
        texts.append((f"{length_um:g} um", WHITE, max(1, round(length_um * px_per_um))))
    line = int(max((font.getbbox(text)[3] for text, _, _ in texts), default=0)) + 8
    places: list[tuple[int, int, str, Colour, int]] = []
    x, y, widest = _GAP, height, width
    for text, colour, bar_px in texts:
        length = int(font.getbbox(text)[2]) + _GAP + (bar_px + _GAP if bar_px else 0)
        if x > _GAP and x + length > most:
            x, y = _GAP, y + line
        places.append((x, y, text, colour, bar_px))
        x += length
        widest = max(widest, x)
    canvas = Image.new("RGB", (widest, y + line))
    canvas.paste(Image.fromarray(picture), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for x, y, text, colour, bar_px in places:
        pen.text((x, y + 2), text, fill=colour, font=font)
        if bar_px:
            left, middle = x + int(font.getbbox(text)[2]) + _GAP, y + line // 2
            pen.rectangle((left, middle - 2, left + bar_px - 1, middle + 1), fill=WHITE)
    return np.asarray(canvas)


def add_caption(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """The picture with lines of text above it; a text too long for the picture loses its middle.

    Args:
        picture: (h, w, 3) uint8.
        lines: from top to bottom; an empty one leaves its place empty.
    """
    height, width = picture.shape[:2]
    size = max(_CAPTION_PX, width // 70)
    font = ImageFont.load_default(size=size)
    line = size + 5
    canvas = Image.new("RGB", (width, height + line * len(lines) + 2))
    canvas.paste(Image.fromarray(picture), (0, line * len(lines) + 2))
    pen = ImageDraw.Draw(canvas)
    for number, text in enumerate(lines):
        pen.text((_GAP // 2, 1 + number * line), shorten_text(text, font, width - _GAP), fill=WHITE, font=font)
    return np.asarray(canvas)


def shorten_text(text: str, font: Font, longest_px: int) -> str:
    """The text, or what of its beginning and end fits into so many pixels, with dots between."""
    if font.getlength(text) <= longest_px:
        return text
    kept = len(text) - 1
    while kept > 0 and font.getlength(_drop_middle(text, kept)) > longest_px:
        kept -= 1
    return _drop_middle(text, kept)


def _drop_middle(text: str, kept: int) -> str:
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


def stack_pictures(pictures: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """(h, w, 3) pictures side by side (axis 1) or one below the other (axis 0), the smaller ones padded with black."""
    other = 1 - axis
    size = max(picture.shape[other] for picture in pictures)
    padded = []
    for picture in pictures:
        missing = [(0, 0), (0, 0), (0, 0)]
        missing[other] = (0, size - picture.shape[other])
        padded.append(np.pad(picture, missing))
    return np.concatenate(padded, axis=axis)
