"""The images that bundles are measured with: parts of real ones, or random counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cellvision.bundle import Manifest
from cellvision.data.images import ImageInfo, list_images, read_image
from cellvision.errors import DataError, explain
from cellvision.metrics.cost.peak_memory import draw_counts
from cellvision.runtime.graphs.inputs import match_input

USUAL_PX = (512, 512)


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchmarkImages:
    """What goes into the nets.

    Attributes:
        size: (H, W) px of each image.
        images: real ones with their headers; empty for random counts.
        channels: names of their channels, or None for those in the files.
        intensity_scale: factor from their counts to the training counts.
    """

    size: tuple[int, int]
    images: tuple[tuple[np.ndarray, ImageInfo], ...] = ()
    channels: tuple[str, ...] | None = None
    intensity_scale: float | None = None

    def build_batch(self, manifest: Manifest, number: int) -> np.ndarray:
        """(B, C, H, W) of a bundle's input dtype: the middles of the images, in turns, repeated where too small.

        Raises:
            BundleError: the images do not suit the bundle.
        """
        if not self.images:
            shape = (number, len(manifest.channels), *self.size)
            return draw_counts(manifest.input_dtype, shape, image_dtypes=manifest.image_dtypes)
        return np.stack([self._fit(manifest, *self.images[i % len(self.images)]) for i in range(number)])

    def _fit(self, manifest: Manifest, image: np.ndarray, info: ImageInfo) -> np.ndarray:
        match = match_input(
            manifest,
            name=info.path.name,
            dtype=image.dtype.name,
            channels=len(image),
            channel_names=self.channels or info.channel_names,
            intensity_scale=self.intensity_scale,
        )
        return match.to_input(cut_middle(match.pick_channels(image), *self.size))


def load_images(
    path: Path,
    *,
    most: int,
    window: Manifest,
    channels: tuple[str, ...] | None,
    intensity_scale: float | None,
) -> BenchmarkImages:
    """The first images of a folder, cut to the size of the first, at most what a bundle's net is shown at once.

    Args:
        path: folder, or one image file.
        most: number of images to load.
        window: the bundle.
        channels: see BenchmarkImages.
        intensity_scale: see BenchmarkImages.

    Raises:
        DataError: there is no image, or one cannot be read.
    """
    files = list_images(path) if path.is_dir() else [path]
    if not all(file.is_file() for file in files):
        raise DataError(explain(got=f"{path}: no such file", need="a folder of images", hint="check the path"))
    images = tuple(read_image(file) for file in files[:most])
    largest = window.tile_px + 2 * window.overlap_px
    height, width = images[0][0].shape[1:]
    return BenchmarkImages(
        size=(min(height, largest), min(width, largest)),
        images=images,
        channels=channels,
        intensity_scale=intensity_scale,
    )


def cut_middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle (C, height, width) of an image (C, H, W), repeated first where it is smaller.

    Example:
        >>> cut_middle(np.arange(6).reshape(1, 2, 3), 1, 5)[0]
        array([[0, 1, 2, 0, 1]])
    """
    image = np.tile(image, (1, -(-height // image.shape[1]), -(-width // image.shape[2])))
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return np.ascontiguousarray(image[:, top : top + height, left : left + width])
