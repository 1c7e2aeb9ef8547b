"""Which place of which pyramid level learns which cell.

Only pairs of a place and a box that can match are ever looked at, a few per cell. The table of all places by all boxes,
as FCOS is usually written, takes gigabytes for a field of 3,000 cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.options import FcosAssigning
from cellvision.models.centermask2.pairs import list_pairs
from cellvision.ops.boxes import compute_areas, compute_centres, to_ltrb


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The places of one pyramid level in one image.

    Attributes:
        stride: px between neighbours.
        height, width: rows and columns.
        shortest, longest: px; range of the longest distance to a box side that this level is for, both included.
    """

    stride: int
    height: int
    width: int
    shortest: float
    longest: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FcosTargets:
    """What a batch of predictions should be; places are numbered by level, then image, then row by row.

    Attributes:
        positive: (P,) int64, rising: the places that learn a cell.
        classes: (P,) int64 class of each, 0..K-1.
        ltrb: (P, 4) float32 > 0, distances to the box sides in strides.
        ignored: (all places,) bool: neither cell nor background; False at those of ``positive``.
    """

    positive: Tensor
    classes: Tensor
    ltrb: Tensor
    ignored: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Assigned:
    """On one level of one image: (P,) places, rising, the (P,) box of each, and (P,) bool whether it is kept."""

    places: Tensor
    boxes: Tensor
    kept: Tensor


def assign_targets(
    truths: Sequence[GroundTruth], *, strides: Sequence[int], shapes: Sequence[Sequence[int]], options: FcosAssigning
) -> FcosTargets:
    """The targets of one batch.

    A place learns a box when it lies strictly inside it (with ``centre_sampling`` near its centre) and the longest
    distance to a side is in the level's range; of several such boxes it learns the smallest.

    Args:
        truths: one per image.
        strides: px, one per level, finest first.
        shapes: rows and columns of each level's map.
        options: see FcosAssigning.
    """
    grids = [
        Grid(stride=stride, height=shape[0], width=shape[1], shortest=low, longest=high)
        for stride, shape, (low, high) in zip(strides, shapes, options.ranges, strict=True)
    ]
    assigned = [_assign_image(truth.boxes, grids, options) for truth in truths]
    parts, start = [], 0
    for level, grid in enumerate(grids):
        for truth, levels in zip(truths, assigned, strict=True):
            parts.append(_describe(truth, grid, levels[level], start))
            start += grid.height * grid.width
    positive, classes, ltrb, ignored = (torch.cat(column) for column in zip(*parts, strict=True))
    return FcosTargets(positive=positive, classes=classes, ltrb=ltrb, ignored=ignored)


def _assign_image(boxes: Tensor, grids: Sequence[Grid], options: FcosAssigning) -> list[_Assigned]:
    """For each level what it learns of the (N, 4) boxes."""
    pairs = [_assign_level(boxes, grid, options) for grid in grids]
    offsets = [
        (_find_locations(places, grid) - compute_centres(boxes[owners])) / grid.stride
        for (places, owners), grid in zip(pairs, grids, strict=True)
    ]
    # In strides: in px the coarse levels, whose places lie wide apart, would lose their cells first.
    nearest = torch.cat(offsets).square().sum(1).argsort(stable=True)[: options.max_positives]
    kept = torch.zeros(sum(map(len, offsets)), dtype=torch.bool, device=boxes.device)
    kept[nearest] = True
    return [
        _Assigned(places=places, boxes=owners, kept=some)
        for (places, owners), some in zip(pairs, kept.split([len(each) for each in offsets]), strict=True)
    ]


def _assign_level(boxes: Tensor, grid: Grid, options: FcosAssigning) -> tuple[Tensor, Tensor]:
    """(P,) places of the level that learn a box, rising, and (P,) the index of that box."""
    order = compute_areas(boxes).argsort(stable=True)
    boxes = boxes[order]  # smallest first: the winner of a place is the lowest index
    regions = _limit_to_centres(boxes, options.radius * grid.stride) if options.centre_sampling else boxes
    winners = torch.full((grid.height * grid.width,), len(boxes), device=boxes.device)
    for places, owners in _list_candidates(boxes, regions, grid):
        locations = _find_locations(places, grid)
        is_inside = to_ltrb(locations, regions[owners]).amin(1) > 0
        longest = to_ltrb(locations, boxes[owners]).amax(1)
        fits = is_inside & (longest >= grid.shortest) & (longest <= grid.longest)
        winners.scatter_reduce_(0, places[fits], owners[fits], "amin")
    positive = (winners < len(boxes)).nonzero().squeeze(1)
    return positive, order[winners[positive]]


def _limit_to_centres(boxes: Tensor, reach: float) -> Tensor:
    """(N, 4) of each box the part within ``reach`` px of its centre, along both axes."""
    centres = compute_centres(boxes)
    return torch.cat(
        [torch.maximum(centres - reach, boxes[:, :2]), torch.minimum(centres + reach, boxes[:, 2:])], dim=1
    )


def _list_candidates(boxes: Tensor, regions: Tensor, grid: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of (places, boxes): every pair that can match, and a few on the rim of the region that cannot."""
    limit = torch.tensor([grid.width - 1, grid.height - 1], device=boxes.device)
    steps = (regions - grid.stride // 2) / grid.stride
    first = steps[:, :2].floor().long().clamp_min(0)
    sides = (steps[:, 2:].ceil().long().minimum(limit) - first + 1).clamp_min(0)
    counts = sides.prod(1)
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)  # half of it to all of it is the longest distance from inside
    counts[(longer / 2 > grid.longest + 1) | (longer < grid.shortest - 1)] = 0
    for owners, within in list_pairs(counts):
        across = sides[owners, 0]
        columns, rows = first[owners, 0] + within % across, first[owners, 1] + within // across
        yield rows * grid.width + columns, owners


def _find_locations(places: Tensor, grid: Grid) -> Tensor:
    """(P, 2) float32 x, y in px of (P,) places."""
    columns_rows = torch.stack([places % grid.width, places // grid.width], dim=1)
    return columns_rows.float() * grid.stride + grid.stride // 2


def _describe(truth: GroundTruth, grid: Grid, assigned: _Assigned, start: int) -> tuple[Tensor, ...]:
    """Positive, classes, ltrb and ignored of FcosTargets for one level of one image whose first place is ``start``."""
    ignored = _find_ignored(truth, grid)
    ignored[assigned.places] = ~assigned.kept  # a place over the cap is still no background
    places, owners = assigned.places[assigned.kept], assigned.boxes[assigned.kept]
    ltrb = to_ltrb(_find_locations(places, grid), truth.boxes[owners]) / grid.stride
    return places + start, truth.classes[owners], ltrb, ignored


def _find_ignored(truth: GroundTruth, grid: Grid) -> Tensor:
    """(places,) bool: the place lies on an ignored pixel."""
    found = torch.zeros(grid.height, grid.width, dtype=torch.bool, device=truth.boxes.device)
    if truth.ignored is not None:
        seen = truth.ignored[grid.stride // 2 :: grid.stride, grid.stride // 2 :: grid.stride]
        found[: seen.shape[0], : seen.shape[1]] = seen[: grid.height, : grid.width]
    return found.flatten()
