"""A large image with known cells: cells cut out of a data set's fields and put at random places, written in bands.

The pixels of the cells are those of the data set; the ground between them is its fields' median and noise. Clusters of
cells that touch are cut out together. So the truth is exact wherever the image is cut into tiles, and an image of any
size takes little memory to make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

from cellvision.data.dataset import CellDataset
from cellvision.errors import DataError, explain

FADE_PX = 6
"""A cell's pixels fade into the ground over so many px around it; cells nearer than that are cut out together."""

LARGEST_PX, LEAST_AREA_PX = 160, 50
"""Longest side of a cluster with its surroundings, and area of its smallest cell."""

BLOCK_PX, TRIES, FAILURES = 4, 50, 200
"""Places are multiples of the first; so many are tried for a cluster; an image is full when so many have found none."""

TILE_PX = 512
"""Of the TIFF files; their bands are as high."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CutOut:
    """One or more cells with what surrounds them, (h, w) px.

    Attributes:
        light: (C, h, w) float32, counts above the ground, times ``share``.
        share: (h, w) float32, 1 on the cells, 0 where nothing of the field is left.
        labels: (h, w) int32, 0 = none, 1..count.
        taken: (h / BLOCK_PX, w / BLOCK_PX) bool, blocks that no other cluster may have.
        count: number of cells.
    """

    light: np.ndarray
    share: np.ndarray
    labels: np.ndarray
    taken: np.ndarray
    count: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """What is where in an image of ``size`` x ``size`` px.

    Attributes:
        size: edge in px.
        seed: of all chance.
        dtype: of the image.
        ground, noise: (C,) median of the ground, and its standard deviation.
        cut_outs: to choose from.
        which, top, left, first_label: (P,) int64; the cut-out at each place, its corner, and its first cell's label.
    """

    size: int
    seed: int
    dtype: np.dtype
    ground: np.ndarray
    noise: np.ndarray
    cut_outs: list[CutOut]
    which: np.ndarray
    top: np.ndarray
    left: np.ndarray
    first_label: np.ndarray

    @property
    def cells(self) -> int:
        """Number of cells in all."""
        return int(sum(self.cut_outs[i].count for i in self.which))

    def find_places(self, start: int, stop: int) -> Iterator[tuple[CutOut, int, slice, slice, slice]]:
        """What shows in rows start..stop: cut-out, first label, its own rows, and rows and columns in the band."""
        near = np.flatnonzero((self.top < stop) & (self.top + LARGEST_PX > start))
        for i in near:
            cut, top, left = self.cut_outs[self.which[i]], int(self.top[i]), int(self.left[i])
            height, width = cut.labels.shape
            first, last = max(start, top), min(stop, top + height)
            if first < last:
                own, rows = slice(first - top, last - top), slice(first - start, last - start)
                yield cut, int(self.first_label[i]), own, rows, slice(left, left + width)

    def draw_labels(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, size) int32, rows of the label image."""
        band = np.zeros((stop - start, self.size), np.int32)
        for cut, first_label, own, rows, columns in self.find_places(start, stop):
            labels = cut.labels[own]
            band[rows, columns][labels > 0] = labels[labels > 0] + (first_label - 1)
        return band

    def draw_plane(self, channel: int, start: int, stop: int) -> np.ndarray:
        """(stop - start, size) counts, rows of one channel of the image."""
        rng = np.random.Generator(np.random.PCG64([self.seed, channel, start]))
        light = np.zeros((stop - start, self.size), np.float32)
        bare = np.ones_like(light)
        for cut, _, own, rows, columns in self.find_places(start, stop):
            light[rows, columns] += cut.light[channel, own]
            bare[rows, columns] *= 1 - cut.share[own]
        light += self.ground[channel] + self.noise[channel] * bare * rng.standard_normal(light.shape, np.float32)
        most = np.iinfo(self.dtype).max if self.dtype.kind == "u" else np.inf
        return np.clip(np.rint(light), 0, most).astype(self.dtype)


def build_scene(fields: CellDataset, channels: Sequence[str], *, size: int, cells: int, seed: int) -> Scene:
    """Cells of a data set at random places.

    Args:
        fields: to cut cells from.
        channels: names of those that the image gets.
        size: edge in px, a multiple of BLOCK_PX.
        cells: number wanted; there are fewer where they find no place.
        seed: of all chance.

    Raises:
        DataError: a channel is missing, or no cell can be cut out.
    """
    names = [channel.name for channel in fields.channels]
    if unknown := set(channels) - set(names):
        got = f"fields without the channels {', '.join(sorted(unknown))} of the bundle"
        raise DataError(
            explain(got=got, need=", ".join(names), hint="--coco with the fields that the net was trained on")
        )
    planes = [names.index(name) for name in channels]
    cut_outs, ground, noise = [], [], []
    for index in range(len(fields)):
        sample = fields.sample(index)
        image = sample.image[planes].astype(np.float32)
        bare = ~ndimage.binary_dilation(sample.label_image > 0, iterations=FADE_PX)
        if bare.any():
            ground.append(np.median(image[:, bare], axis=1))
            noise.append(1.4826 * np.median(np.abs(image[:, bare] - ground[-1][:, None]), axis=1))
        cut_outs += cut_cells(image, sample.label_image)
    if not cut_outs:
        got = f"{len(fields)} fields in which no cell lies free of the sides, or all are in large clusters"
        raise DataError(explain(got=got, need="cells that can be cut out", hint="another --coco or --pattern"))
    rng = np.random.Generator(np.random.PCG64([seed]))
    which, top, left = place_cut_outs(rng, cut_outs, size=size, cells=cells)
    counts = np.array([cut_outs[i].count for i in which], np.int64)
    return Scene(
        size=size,
        seed=seed,
        dtype=sample.image.dtype,
        ground=np.median(ground, axis=0),
        noise=np.median(noise, axis=0),
        cut_outs=cut_outs,
        which=which,
        top=top,
        left=left,
        first_label=np.cumsum(counts) - counts + 1,
    )


def cut_cells(image: np.ndarray, label_image: np.ndarray) -> Iterator[CutOut]:
    """The clusters of a field that lie whole in it, each turned and mirrored in all eight ways."""
    distance, nearest = ndimage.distance_transform_edt(label_image == 0, return_indices=True)
    clusters, _ = ndimage.label(distance <= FADE_PX / 2, np.ones((3, 3)))
    cluster_of = np.where(distance < FADE_PX, clusters[tuple(nearest)], 0)
    for number, box in enumerate(ndimage.find_objects(cluster_of), start=1):
        if not is_whole(box, label_image.shape):
            continue
        own = cluster_of[box] == number
        ids, labels = np.unique(np.where(own, label_image[box], 0), return_inverse=True)
        labels = labels.reshape(own.shape).astype(np.int32)
        if np.bincount(labels.ravel())[1:].min() < LEAST_AREA_PX:
            continue
        around = image[:, box[0], box[1]]
        ground = np.median(around[:, label_image[box] == 0], axis=1)[:, None, None]
        share = np.where(own, np.clip(1 - distance[box] / FADE_PX, 0, 1), 0).astype(np.float32)
        yield from build_cut_outs((around - ground) * share, share, labels, count=len(ids) - 1)


def is_whole(box: tuple[slice, slice] | None, shape: tuple[int, int]) -> bool:
    """Whether a cluster lies free of the sides of its field, and is not too long."""
    if box is None:
        return False
    free = all(side.start > 0 and side.stop < length for side, length in zip(box, shape, strict=True))
    return free and max(side.stop - side.start for side in box) <= LARGEST_PX - BLOCK_PX


def build_cut_outs(light: np.ndarray, share: np.ndarray, labels: np.ndarray, *, count: int) -> Iterator[CutOut]:
    """A cluster turned and mirrored in all eight ways, filled up to a square of whole blocks; all views of one."""
    blocks = -(-max(share.shape) // BLOCK_PX)
    more = [(0, blocks * BLOCK_PX - length) for length in share.shape]
    light, share, labels = np.pad(light, [(0, 0), *more]), np.pad(share, more), np.pad(labels, more)
    taken = share.reshape(blocks, BLOCK_PX, blocks, BLOCK_PX).max(axis=(1, 3)) >= 0.5
    for turn in range(8):
        parts = (np.rot90(part, turn % 4, axes=(-2, -1)) for part in (light, share, labels, taken))
        parts = (np.flip(part, -2) for part in parts) if turn > 3 else parts
        yield CutOut(**dict(zip(("light", "share", "labels", "taken"), parts, strict=True)), count=count)


def place_cut_outs(
    rng: np.random.Generator, cut_outs: list[CutOut], *, size: int, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(P,) int64 each: which cut-out, and its top left corner; none on another, until there are enough cells."""
    taken = np.zeros((size // BLOCK_PX, size // BLOCK_PX), bool)
    found: list[tuple[int, int, int]] = []
    placed = failed = 0
    while placed < cells and failed < FAILURES:
        which = int(rng.integers(len(cut_outs)))
        shape = cut_outs[which].taken.shape
        places = rng.integers(0, np.array(taken.shape) - shape, (TRIES, 2))
        for top, left in places:
            window = taken[top : top + shape[0], left : left + shape[1]]
            if not (window & cut_outs[which].taken).any():
                break
        else:
            failed += 1
            continue
        failed = 0
        window |= cut_outs[which].taken
        found.append((which, top * BLOCK_PX, left * BLOCK_PX))
        placed += cut_outs[which].count
    table = np.array(sorted(found, key=lambda place: place[1:]), np.int64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]


def write_scene(scene: Scene, image: Path, truth: Path) -> None:
    """The image and its label image as compressed, tiled TIFF files."""
    channels = len(scene.ground)
    axes = {"axes": "CYX"}
    planes = [lambda a, b, c=channel: scene.draw_plane(c, a, b) for channel in range(channels)]
    for path, draws, dtype in ((image, planes, scene.dtype), (truth, [scene.draw_labels], np.dtype(np.int32))):
        many = len(draws) > 1
        tifffile.imwrite(
            path, iterate_tiles(scene.size, draws), shape=(len(draws), scene.size, scene.size)[0 if many else 1 :],
            dtype=dtype, tile=(TILE_PX, TILE_PX), compression="zlib", compressionargs={"level": 1}, bigtiff=True,
            photometric="minisblack", planarconfig="separate" if many else None, metadata=axes if many else None,
        )  # fmt: skip


def iterate_tiles(size: int, draws: list[Callable[[int, int], np.ndarray]]) -> Iterator[np.ndarray]:
    """The tiles of a file in their order, (TILE_PX, TILE_PX) or less at the far sides."""
    for draw in draws:
        for top in range(0, size, TILE_PX):
            band = draw(top, min(top + TILE_PX, size))
            for left in range(0, size, TILE_PX):
                yield band[:, left : left + TILE_PX]
