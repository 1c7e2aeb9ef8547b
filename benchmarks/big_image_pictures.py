"""Pictures of a large prediction: all of it with the grid of tiles, and crops where tiles meet or cells went wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from big_image_seams import Lines, Verdicts
from PIL import Image

from cellvision.runtime.pictures.marks import Colour, add_caption, add_legend, stack_pictures
from cellvision.runtime.pictures.overlay import find_outlines

CROP_PX, ZOOM, ACROSS = 96, 4, 4
BOTH, TRUE, PRED = (255, 255, 255), (0, 220, 90), (255, 60, 200)
TILE, WINDOW, GRID = (255, 190, 0), (70, 120, 255), (0, 200, 255)
LEGEND: tuple[tuple[str, Colour], ...] = (
    ("truth", TRUE), ("prediction", PRED), ("both", BOTH), ("tile border", TILE), ("window border", WINDOW),
)  # fmt: skip


def save_overview(path: Path, picture: Path, lines: dict[str, Lines], shape: tuple[int, int], text: str) -> None:
    """The overlay that the prediction wrote, with the grid of tiles drawn over it."""
    overview = np.array(Image.open(picture).convert("RGB"))
    step = -(-max(shape) // max(overview.shape[1], 1))
    cells = overview[: -(-shape[0] // step)]  # the legend is below them
    cells[lines["tile borders"].down // step] = GRID
    cells[:, lines["tile borders"].across // step] = GRID
    Image.fromarray(add_caption(overview, [text])).save(path)


def save_crops(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    pred: np.ndarray,
    lines: dict[str, Lines],
    centres: dict[str, np.ndarray],
) -> None:
    """Crops around places, a row of ACROSS for each name, with outlines of truth and prediction.

    Args:
        path: PNG to write.
        image: (C, H, W) counts.
        truth: (H, W) label image.
        pred: the same of the prediction.
        lines: by name.
        centres: by name, (n, 2) int64 y, x; the first ACROSS are shown.
    """
    high = np.maximum(np.percentile(image[:, ::7, ::7], 99.8, axis=(1, 2)), 1)
    last = np.maximum(np.array(truth.shape) - CROP_PX, 0)
    rows = []
    for name, places in centres.items():
        crops = []
        for y, x in places[:ACROSS]:
            top, left = np.clip((y - CROP_PX // 2, x - CROP_PX // 2), 0, last)
            window = (slice(top, top + CROP_PX), slice(left, left + CROP_PX))
            planes = image[(slice(None), *window)] / high[:, None, None]
            crop = draw_crop(planes, truth[window], pred[window], lines, (top, left))
            crops.append(add_caption(crop, [f"{name}: y {y}, x {x}"]))
        if crops:
            rows.append(stack_pictures([np.pad(crop, ((0, 6), (0, 6), (0, 0))) for crop in crops], axis=1))
    Image.fromarray(add_legend(stack_pictures(rows, axis=0), LEGEND)).save(path)


def draw_crop(
    planes: np.ndarray, truth: np.ndarray, pred: np.ndarray, lines: dict[str, Lines], corner: tuple[int, int]
) -> np.ndarray:
    """(h, w, 3) uint8, ZOOM times as large; outlines are one px of the picture wide, so that they hide little.

    Args:
        planes: (C, h, w), 0..1 from dark to bright.
        truth: (h, w) label image.
        pred: the same of the prediction.
        lines: by name.
        corner: y, x of the crop in the image.
    """
    grey = np.sqrt(np.clip(planes.max(axis=0), 0, 1)) * 200
    picture = np.repeat(enlarge(grey.astype(np.uint8))[..., None], 3, axis=2)
    for name, colour in (("window borders", WINDOW), ("tile borders", TILE)):
        for places, start, view in (
            (lines[name].down, corner[0], picture),
            (lines[name].across, corner[1], picture.swapaxes(0, 1)),
        ):
            for place in places[(places >= start) & (places < start + CROP_PX)]:
                view[(place - start) * ZOOM, ::2] = colour
    is_true, is_pred = (find_outlines(enlarge(labels)) for labels in (truth, pred))
    for where, colour in ((is_true, TRUE), (is_pred, PRED), (is_true & is_pred, BOTH)):
        picture[where] = colour
    return picture


def enlarge(plane: np.ndarray) -> np.ndarray:
    """(ZOOM h, ZOOM w)."""
    return np.asarray(plane).repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def choose_places(verdicts: Verdicts, lines: dict[str, Lines], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """By name, (n, 2) y, x: corners of tiles, cells on borders, and all that went wrong on them, in random order."""
    pairs, tiles = verdicts.overlaps, lines["tile borders"]
    corners = np.stack(np.meshgrid(tiles.down, tiles.across, indexing="ij"), axis=-1).reshape(-1, 2)
    on_tiles = verdicts.is_true & tiles.cross(pairs.true_boxes)
    on_windows = verdicts.is_true & lines["window borders"].cross(pairs.true_boxes)
    extra = verdicts.extra & tiles.cross(pairs.pred_boxes)
    wrong = {
        "on a border": on_tiles,
        "missed on a border": on_tiles & (verdicts.iou == 0),
        "doubled on a border": on_tiles & verdicts.doubled,
        "cut at a border": verdicts.find_cut(tiles) & verdicts.is_true,
        "cut at a window border": verdicts.find_cut(lines["window borders"]) & verdicts.is_true,
        "doubled on a window border": on_windows & verdicts.doubled,
    }
    places = {"corner": corners} | {name: find_middles(pairs.true_boxes[chosen]) for name, chosen in wrong.items()}
    places["extra on a border"] = find_middles(pairs.pred_boxes[extra])
    return {name: rng.permutation(found) for name, found in places.items()}


def find_middles(boxes: np.ndarray) -> np.ndarray:
    """(N, 2) int64 y, x of (N, 4) boxes."""
    return (boxes[:, :2] + boxes[:, 2:]) // 2
