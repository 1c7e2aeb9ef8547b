"""Statistics of the training images: normalisation per channel and pixels per class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cellvision.errors import ConfigError, DataError, check_choice, explain
from cellvision.types import IGNORE, DataStats, Sample

NORMALIZATIONS = ("percentile", "zscore", "none")
PIXELS_PER_FIELD = 65_536


def compute_stats(
    samples: Iterable[Sample],
    *,
    channels: Sequence[int],
    classes: int,
    normalization: str = "percentile",
    percentiles: tuple[float, float] = (1.0, 99.8),
) -> DataStats:
    """Normalisation and class frequencies of a set of samples, in memory bounded by 65,536 pixels a field.

    The statistics are those of the whole set, never of one image: tiles of a large image would otherwise disagree
    with each other, and a field without dead cells would have its dead-stain noise stretched to full range.

    Args:
        samples: the training samples; read once.
        channels: positions of the channels that the net sees, in its order.
        classes: number of classes K, background included.
        normalization: "percentile" maps the two percentiles to 0 and 1; "zscore" gives mean 0 and deviation 1; "none"
            keeps the counts.
        percentiles: low and high, in percent.

    Raises:
        ConfigError: unknown normalisation, or percentiles out of order.
        DataError: no sample at all.
    """
    check_choice("data.normalization", normalization, NORMALIZATIONS)
    if not 0.0 <= percentiles[0] < percentiles[1] <= 100.0:
        raise ConfigError(
            explain(
                got=f"data.percentiles={list(percentiles)}",
                need="low < high, both in 0..100",
                hint="data.percentiles=[1.0,99.8]",
            )
        )
    pixels: list[np.ndarray] = []
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    for sample in samples:
        flat = sample.image[list(channels)].reshape(len(channels), -1)
        step = max(1, flat.shape[1] // PIXELS_PER_FIELD)
        pixels.append(flat[:, ::step].astype(np.float32))
        counts += np.bincount(sample.class_map.ravel(), minlength=IGNORE + 1)
    if not pixels:
        raise DataError(
            explain(got="no training image", need="at least one", hint="check data.root, data.pattern and the split")
        )
    offset, scale = _compute_affine(np.concatenate(pixels, axis=1), normalization, percentiles)
    return DataStats(offset=offset, scale=scale, class_pixels=tuple(int(n) for n in counts[:classes]))


def _compute_affine(
    pixels: np.ndarray, normalization: str, percentiles: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale per channel; a constant channel gets scale 1, so that it becomes 0 and not NaN."""
    if normalization == "none":
        offset, scale = np.zeros(len(pixels)), np.ones(len(pixels))
    elif normalization == "zscore":
        offset, scale = pixels.mean(axis=1, dtype=np.float64), pixels.std(axis=1, dtype=np.float64)
    else:
        offset, high = np.percentile(pixels, percentiles, axis=1)
        scale = high - offset
    scale = np.where(scale > 0, scale, 1.0)
    return tuple(float(v) for v in offset), tuple(float(v) for v in scale)
