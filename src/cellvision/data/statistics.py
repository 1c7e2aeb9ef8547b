"""Statistics of the training images: normalisation per channel and pixels per class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cellvision.errors import ConfigError, DataError, check_choice, explain
from cellvision.types import IGNORE, DataStats, Sample

NORMALIZATIONS = ("percentile", "zscore", "fixed", "none")
PIXELS_PER_FIELD = 65_536
SATURATED_SHARE = 0.05

CountRange = Sequence[float] | Sequence[Sequence[float]]
"""(dark, bright) in counts, or one such pair per channel."""


def compute_stats(
    samples: Iterable[Sample],
    *,
    channels: Sequence[int],
    classes: int,
    normalization: str = "percentile",
    percentiles: tuple[float, float] = (1.0, 99.8),
    count_range: CountRange | None = None,
) -> DataStats:
    """Normalisation and class frequencies of a set of samples, in memory bounded by 65,536 pixels a field.

    The statistics are those of the whole set, never of one image: tiles of a large image would otherwise disagree
    with each other, and a field without dead cells would have its dead-stain noise stretched to full range.

    Args:
        samples: the training samples; read once.
        channels: positions of the channels that the net sees, in its order.
        classes: number of classes K, background included.
        normalization: "percentile" maps the two percentiles to 0 and 1; "zscore" gives mean 0 and deviation 1; "fixed"
            maps ``count_range`` to 0 and 1, whatever the images show; "none" keeps the counts.
        percentiles: low and high, in percent.
        count_range: of "fixed" only. None is all that the images' type can hold, 0..255 or 0..65535: a published
            mean and deviation, which are numbers of 0..255, then mean the same in images of 8 and of 16 bits.

    Raises:
        ConfigError: unknown normalisation, percentiles out of order, or a range that is none, is not used, or is
            missing where the images' type does not tell it.
        DataError: no sample at all.
    """
    _check_settings(normalization, percentiles, count_range, channels=len(channels))
    is_measured = normalization in ("percentile", "zscore")
    pixels: list[np.ndarray] = []
    dtypes: set[np.dtype] = set()
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    for sample in samples:
        dtypes.add(sample.image.dtype)
        if is_measured:
            flat = sample.image[list(channels)].reshape(len(channels), -1)
            step = max(1, flat.shape[1] // PIXELS_PER_FIELD)
            pixels.append(flat[:, ::step].astype(np.float32))
        counts += np.bincount(sample.class_map.ravel(), minlength=IGNORE + 1)
    if not dtypes:
        raise DataError(
            explain(got="no training image", need="at least one", hint="check data.root, data.pattern and the split")
        )
    if is_measured:
        offset, scale = _measure(np.concatenate(pixels, axis=1), normalization, percentiles)
    else:
        given = (0.0, 1.0) if normalization == "none" else count_range or _find_type_range(dtypes)
        low, high = np.broadcast_to(np.array(given, np.float64), (len(channels), 2)).T
        offset, scale = low, high - low
    return DataStats(
        offset=tuple(float(v) for v in offset),
        scale=tuple(float(v) for v in scale),
        class_pixels=tuple(int(n) for n in counts[:classes]),
        normalization=normalization,
    )


def find_fault(image: np.ndarray) -> str | None:
    """What is doubtful about the counts of a field's channels; None where they vary and few are the maximum.

    Args:
        image: (C, H, W) raw counts; the maximum is the greatest number of an integer type, and floats have none.

    Example:
        >>> find_fault(np.array([[[7, 9], [8, 7]], [[0, 0], [0, 0]]], np.uint8))
        'constant'
    """
    top = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else None
    highest = image.max(axis=(1, 2))
    if (image.min(axis=(1, 2)) == highest).any():
        return "constant"
    is_saturated = any((plane == top).mean() > SATURATED_SHARE for plane in image[highest == top])
    return f"with over {SATURATED_SHARE:.0%} of the pixels at {top}" if is_saturated else None


def _measure(pixels: np.ndarray, normalization: str, percentiles: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Offset and scale per channel; a constant channel gets scale 1, so that it becomes 0 and not NaN."""
    if normalization == "zscore":
        offset, scale = pixels.mean(axis=1, dtype=np.float64), pixels.std(axis=1, dtype=np.float64)
    else:
        offset, high = np.percentile(pixels, percentiles, axis=1)
        scale = high - offset
    return offset, np.where(scale > 0, scale, 1.0)


def _find_type_range(dtypes: set[np.dtype]) -> tuple[float, float]:
    """Least and greatest count that images of these types can hold; ConfigError unless there is one answer."""
    names = sorted(dtype.name for dtype in dtypes)
    if len(names) > 1 or not np.issubdtype(names[0], np.integer):
        raise ConfigError(
            explain(
                got=f"data.normalization=fixed for {' and '.join(names)} images",
                need="the counts that mean dark and bright, which types of images do not tell here",
                hint="data.count_range=[0,4095], as it is for a 12-bit camera",
            )
        )
    return 0.0, float(np.iinfo(names[0]).max)


def _check_settings(
    normalization: str, percentiles: tuple[float, float], count_range: CountRange | None, *, channels: int
) -> None:
    check_choice("data.normalization", normalization, NORMALIZATIONS)
    if not 0.0 <= percentiles[0] < percentiles[1] <= 100.0:
        raise ConfigError(
            explain(
                got=f"data.percentiles={list(percentiles)}",
                need="low < high, both in 0..100",
                hint="data.percentiles=[1.0,99.8]",
            )
        )
    if count_range is None:
        return
    got = f"data.count_range={count_range}"
    if normalization != "fixed":
        got = f"{got} with data.normalization={normalization}"
        raise ConfigError(explain(got=got, need="fixed", hint="data.normalization=fixed"))
    if not _is_range(count_range) and not _are_ranges(count_range, channels):
        need = f"finite counts [dark, bright], dark < bright, or one such pair for each of {channels} channels"
        raise ConfigError(explain(got=got, need=need, hint="data.count_range=[0,255]"))


def _are_ranges(value: object, channels: int) -> bool:
    return isinstance(value, Sequence) and len(value) == channels and all(map(_is_range, value))


def _is_range(value: object) -> bool:
    """Whether this is [low, high], low < high."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        return False
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value)
    return are_numbers and value[0] < value[1]
