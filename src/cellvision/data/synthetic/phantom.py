"""Drawn cells: outlines, nuclei and the light that each stain gives off, before any microscope sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LIVE, DEAD = 1, 2
STAINS = 3
"""Planes of every emission array: 0 nuclear stain (Hoechst), 1 live stain (calcein), 2 dead stain (PI)."""

_TRIES = 14
_LEAST_VISIBLE = 0.65

# Photons per pixel in the brightest part of a typical cell.
_HOECHST, _CALCEIN, _PI = 70.0, 110.0, 120.0


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnCell:
    """One cell on a patch of its own, its centre in the patch's middle.

    Attributes:
        kind: LIVE or DEAD.
        mask: (S, S) bool, the whole cell.
        emission: (STAINS, S, S) float32, photons per pixel; 0 outside the mask.
    """

    kind: int
    mask: np.ndarray
    emission: np.ndarray


def draw_cell(rng: np.random.Generator, *, kind: int, radius_px: float, ambiguous: bool) -> DrawnCell:
    """A live cell (spread, filled with calcein) or a dead one (shrunken, rounded, PI in a condensed nucleus).

    Args:
        rng: source of all chance.
        kind: LIVE or DEAD.
        radius_px: mean radius of a live cell; a dead one shrinks from it.
        ambiguous: leaky: a live cell with dim calcein and some PI, or a dead one that kept some calcein.
    """
    dead = kind == DEAD
    radius = radius_px * (rng.uniform(0.6, 0.85) if dead else 1.0)
    side = 2 * int(np.ceil(1.7 * radius)) + 3
    dy, dx = np.mgrid[:side, :side].astype(np.float32) - np.float32(side // 2)
    rho = draw_outline(rng, dy, dx, radius=radius, roughness=0.05 if dead else 0.1, stretch=1.12 if dead else 1.45)
    mask = rho < 1
    nucleus = _draw_nucleus(rng, dy, dx, radius=radius, dead=dead) * mask
    body = np.sqrt(np.clip(1 - rho**2, 0, 1)) * mask * draw_texture(rng, (side, side), sigma=1.6, depth=0.12)
    paint = _paint_dead if dead else _paint_live
    emission = paint(rng, body, nucleus, ambiguous=ambiguous)
    return DrawnCell(kind=kind, mask=mask, emission=emission.astype(np.float32))


def place_cells(
    rng: np.random.Generator, cells: list[DrawnCell], *, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay cells into a field one after another; a later one lies over the earlier ones, and its label wins.

    About half are laid beside an earlier cell, so that many touch and some overlap. A place is refused where it would
    hide too much of another cell or cut it into two parts; a cell that finds no place is left out, so a crowded field
    holds fewer cells than offered. Light adds up where cells overlap, as in a wide-field microscope.

    Returns:
        label_image: (height, width) int32, 0 = background, 1..N; every label is one 4-connected region.
        kinds: (N,) int64, LIVE or DEAD.
        emission: (STAINS, height, width) float32, photons per pixel.
    """
    label_image = np.zeros((height, width), np.int32)
    emission = np.zeros((STAINS, height, width), np.float32)
    kinds: list[int] = []
    centres: list[tuple[float, float, float]] = []
    homes: list[_Home] = []
    for cell in cells:
        radius = float(np.sqrt(cell.mask.sum() / np.pi))
        for _ in range(_TRIES):
            y, x = _propose_centre(rng, centres, radius, height=height, width=width)
            field_part, cell_part = find_overlap(cell.mask.shape[0], y, x, height=height, width=width)
            if _try_label(label_image, field_part, cell.mask[cell_part], homes):
                centres.append((y, x, radius))
                kinds.append(cell.kind)
                emission[(slice(None), *field_part)] += cell.emission[(slice(None), *cell_part)]
                break
    return label_image, np.array(kinds, np.int64), emission


def draw_debris(rng: np.random.Generator, *, pieces: int, height: int, width: int, pixel_size_um: float) -> np.ndarray:
    """Light of unlabelled dirt, (STAINS, height, width) float32 photons per pixel: small, bright, in several stains."""
    emission = np.zeros((STAINS, height, width), np.float32)
    for _ in range(pieces):
        radius = rng.uniform(0.5, 2.4) / pixel_size_um
        side = 2 * int(np.ceil(1.7 * radius)) + 3
        dy, dx = np.mgrid[:side, :side].astype(np.float32) - np.float32(side // 2)
        rho = draw_outline(rng, dy, dx, radius=radius, roughness=0.15, stretch=2.2)
        piece = np.sqrt(np.clip(1 - rho**2, 0, 1))
        glow = rng.gamma(1.2, 60.0, STAINS) * (rng.random(STAINS) < 0.6)
        field_part, part = find_overlap(side, rng.uniform(0, height), rng.uniform(0, width), height=height, width=width)
        emission[(slice(None), *field_part)] += glow[:, None, None] * piece[part]
    return emission


def draw_outline(
    rng: np.random.Generator, dy: np.ndarray, dx: np.ndarray, *, radius: float, roughness: float, stretch: float
) -> np.ndarray:
    """Distance from the centre as a share of the outline's radius in that direction: below 1 is inside.

    Args:
        rng: source of all chance.
        dy: distance of each pixel from the centre downwards, in px.
        dx: as ``dy``, to the right.
        radius: mean radius in px.
        roughness: of the outline, 0 = smooth; 0.1 is a cell.
        stretch: greatest ratio of length to width; at least 1.
    """
    angle = np.arctan2(dy, dx) - rng.uniform(0, 2 * np.pi)
    axis = np.sqrt(rng.uniform(1.0, stretch))
    outline = 1 / np.sqrt((np.cos(angle) / axis) ** 2 + (np.sin(angle) * axis) ** 2)
    for k in range(2, 7):
        amplitude = rng.normal(0, roughness * (2 / k) ** 1.4)
        outline = outline + amplitude * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(dy, dx) / (radius * np.clip(outline, 0.45, 1.7))


def draw_texture(rng: np.random.Generator, shape: tuple[int, ...], *, sigma: float, depth: float) -> np.ndarray:
    """Positive factors around 1 in that shape, correlated over ``sigma`` px; ``depth`` is their deviation."""
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    # A Gaussian filter leaves a standard deviation of 1 / (2 sqrt(pi) sigma) of white noise.
    return np.clip(1 + depth * 2 * np.sqrt(np.pi) * sigma * grain, 0.3, 1.8)


def _draw_nucleus(rng: np.random.Generator, dy: np.ndarray, dx: np.ndarray, *, radius: float, dead: bool) -> np.ndarray:
    """(S, S) brightness of the nucleus, about 1 in the middle: even with dark nucleoli, or condensed, or in pieces."""
    away = rng.uniform(0, 0.22 * radius)
    turn = rng.uniform(0, 2 * np.pi)
    dy, dx = dy - away * np.sin(turn), dx - away * np.cos(turn)
    if dead and rng.random() < 0.3:
        return _draw_fragments(rng, dy, dx, radius=radius)
    size = radius * (rng.uniform(0.44, 0.58) if dead else rng.uniform(0.48, 0.6))
    rho = draw_outline(rng, dy, dx, radius=size, roughness=0.04, stretch=1.3)
    nucleus = np.clip(1 - rho**4, 0, 1) * draw_texture(rng, dy.shape, sigma=1.1, depth=0.10)
    for _ in range(0 if dead else rng.integers(1, 4)):
        y, x = rng.uniform(-0.45, 0.45, 2) * size
        nucleus = nucleus * (1 - 0.35 * np.exp(-((dy - y) ** 2 + (dx - x) ** 2) / (2 * (0.16 * size) ** 2)))
    return nucleus


def _draw_fragments(rng: np.random.Generator, dy: np.ndarray, dx: np.ndarray, *, radius: float) -> np.ndarray:
    pieces = [np.zeros_like(dy)]
    for _ in range(rng.integers(2, 5)):
        y, x = rng.uniform(-0.42, 0.42, 2) * radius
        size = radius * rng.uniform(0.17, 0.33)
        pieces.append(np.clip(1.15 - ((dy - y) ** 2 + (dx - x) ** 2) / size**2, 0, 1))
    return np.max(pieces, axis=0)


def _paint_live(rng: np.random.Generator, body: np.ndarray, nucleus: np.ndarray, *, ambiguous: bool) -> np.ndarray:
    calcein = _CALCEIN * rng.lognormal(-0.1, 0.42) * (rng.uniform(0.15, 0.35) if ambiguous else 1.0)
    leak = _PI * rng.uniform(0.12, 0.3) if ambiguous else 0.0
    hoechst = _HOECHST * rng.lognormal(-0.03, 0.22)
    return np.stack(
        [
            hoechst * (nucleus + 0.03 * body),
            # A nucleus takes up calcein too and makes the cell thicker, hence brighter, there.
            calcein * body * (0.88 + 0.22 * nucleus),
            leak * (nucleus + 0.15 * body),
        ]
    )


def _paint_dead(rng: np.random.Generator, body: np.ndarray, nucleus: np.ndarray, *, ambiguous: bool) -> np.ndarray:
    calcein = _CALCEIN * (rng.uniform(0.12, 0.28) if ambiguous else rng.uniform(0.0, 0.06))
    pi = _PI * rng.lognormal(-0.1, 0.45) * (rng.uniform(0.3, 0.55) if ambiguous else 1.0)
    # PI displaces part of the Hoechst, but a condensed nucleus is brighter all the same.
    hoechst = _HOECHST * rng.lognormal(0.0, 0.25) * (1.2 if ambiguous else 1.65)
    return np.stack(
        [
            hoechst * (nucleus + 0.06 * body),
            calcein * body,
            # PI binds the RNA of a dead cell's body as well: faint, but it shows the outline.
            pi * (nucleus + 0.17 * body),
        ]
    )


def _propose_centre(
    rng: np.random.Generator, centres: list[tuple[float, float, float]], radius: float, *, height: int, width: int
) -> tuple[float, float]:
    if centres and rng.random() < 0.5:
        y, x, other = centres[rng.integers(len(centres))]
        turn, apart = rng.uniform(0, 2 * np.pi), rng.uniform(0.78, 1.02) * (radius + other)
        y, x = y + apart * np.sin(turn), x + apart * np.cos(turn)
        if 0 <= y < height and 0 <= x < width:
            return y, x
    return rng.uniform(0, height), rng.uniform(0, width)


def find_overlap(
    side: int, y: float, x: float, *, height: int, width: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a square patch centred at (y, x) lies in the field, and which part of the patch that is."""
    field_part, patch_part = [], []
    for centre, length in ((y, height), (x, width)):
        start = int(centre) - side // 2
        first, last = max(start, 0), min(start + side, length)
        field_part.append(slice(first, last))
        patch_part.append(slice(first - start, last - start))
    return (field_part[0], field_part[1]), (patch_part[0], patch_part[1])


@dataclass(frozen=True, kw_only=True)
class _Home:
    """Where a cell was laid, and how many pixels it had before others covered some."""

    part: tuple[slice, slice]
    area: int


def _try_label(label_image: np.ndarray, part: tuple[slice, slice], mask: np.ndarray, homes: list[_Home]) -> bool:
    """Write the next label where ``mask`` is and record its home; write nothing if that harms another cell."""
    under = label_image[part]
    before = under.copy()
    under[mask] = len(homes) + 1
    for label in np.unique(before[mask]):
        if label and not _is_whole(label_image[homes[label - 1].part] == label, homes[label - 1].area):
            under[...] = before
            return False
    homes.append(_Home(part=part, area=int(mask.sum())))
    return True


def _is_whole(visible: np.ndarray, area: int) -> bool:
    return bool(visible.sum() >= _LEAST_VISIBLE * area) and ndimage.label(visible)[1] == 1
