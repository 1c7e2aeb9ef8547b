"""Masks as runs of pixels, all cells of a field at once: to and from COCO's text, and from label images.

Pixels are numbered column by column, as COCO does. Nothing here is ever as large as cells x image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellvision.errors import DataError, explain

MOST_DIGITS = 12
"""Of one run in the text form, 5 bits each: more than any image needs, and still an int64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskRuns:
    """The pixels of N masks as half-open intervals of pixel numbers.

    Attributes:
        shape: (H, W) of the image in px.
        count: N.
        mask: (R,) int64, ascending: the mask 0..N-1 that run i belongs to. A mask without a pixel has no run.
        start, end: (R,) int64, start < end, ascending within a mask; at most H * W.
    """

    shape: tuple[int, int]
    count: int
    mask: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def compute_areas(self) -> np.ndarray:
        """(N,) int64 number of pixels."""
        return np.bincount(self.mask, weights=self.end - self.start, minlength=self.count).astype(np.int64)

    def compute_boxes(self) -> np.ndarray:
        """(N, 4) float64 tight boxes x1, y1, x2, y2 in px with edges on pixel edges; zeros without a pixel."""
        boxes = np.zeros((self.count, 4))
        if not self.mask.size:
            return boxes
        height = self.shape[0]
        left, right = self.start // height, (self.end - 1) // height
        # A run that goes on in the next column touches the bottom of one and the top of the other.
        wraps = left != right
        top = np.where(wraps, 0, self.start % height)
        bottom = np.where(wraps, height - 1, (self.end - 1) % height)
        first = np.flatnonzero(np.diff(self.mask, prepend=-1))
        present = self.mask[first]
        boxes[present, 0] = np.minimum.reduceat(left, first)
        boxes[present, 1] = np.minimum.reduceat(top, first)
        boxes[present, 2] = np.maximum.reduceat(right, first) + 1
        boxes[present, 3] = np.maximum.reduceat(bottom, first) + 1
        return boxes


def find_runs(label_image: np.ndarray) -> tuple[np.ndarray, MaskRuns]:
    """Labels (N,) int64 ascending of the cells of a label image (H, W), and their runs.

    Example:
        >>> labels, runs = find_runs(np.array([[7, 7, 0], [7, 0, 3]]))
        >>> labels.tolist(), runs.compute_areas().tolist()
        ([3, 7], [1, 3])
    """
    pixels = label_image.T.ravel()
    start = np.flatnonzero(np.concatenate([np.ones(min(pixels.size, 1), bool), pixels[1:] != pixels[:-1]]))
    end = np.append(start[1:], pixels.size)[: start.size]
    of_run = pixels[start]
    inside = of_run > 0
    labels, mask = np.unique(of_run[inside], return_inverse=True)
    order = np.argsort(mask, kind="stable")
    runs = MaskRuns(
        shape=(label_image.shape[0], label_image.shape[1]),
        count=labels.size,
        mask=mask[order].astype(np.int64),
        start=start[inside][order].astype(np.int64),
        end=end[inside][order].astype(np.int64),
    )
    return labels.astype(np.int64), runs


def encode_masks(runs: MaskRuns) -> tuple[dict[str, Any], ...]:
    """One COCO compressed RLE per mask: {"size": [H, W], "counts": text}.

    Example:
        >>> encode_masks(find_runs(np.array([[0, 1], [0, 1]]))[1])
        ({'size': [2, 2], 'counts': '22'},)
    """
    pixels = runs.shape[0] * runs.shape[1]
    per_mask = np.bincount(runs.mask, minlength=runs.count)
    last = np.cumsum(per_mask) - 1
    tail = np.full(runs.count, pixels)
    tail[per_mask > 0] -= runs.end[last[per_mask > 0]]
    is_first = np.diff(runs.mask, prepend=-1) > 0
    before = np.where(is_first, 0, np.roll(runs.end, 1))
    # Counts of a mask: gap, run, gap, run, ..., and what follows the last run unless nothing does.
    counts_per_mask = 2 * per_mask + (tail > 0)
    first = np.cumsum(counts_per_mask) - counts_per_mask
    place = 2 * np.arange(runs.mask.size) + np.repeat(first - 2 * (last + 1 - per_mask), per_mask)
    counts = np.zeros(int(counts_per_mask.sum()), np.int64)
    counts[place] = runs.start - before
    counts[place + 1] = runs.end - runs.start
    counts[(first + counts_per_mask - 1)[tail > 0]] = tail[tail > 0]
    position = np.arange(counts.size) - np.repeat(first, counts_per_mask)
    values = counts - np.where(position > 2, np.roll(counts, 2), 0)
    text, digits = _to_text(values)
    ends = np.cumsum(digits)[first + counts_per_mask - 1] if runs.count else np.zeros(0, np.int64)
    size = list(runs.shape)
    starts = np.concatenate([[0], ends[:-1]])
    return tuple({"size": size, "counts": text[a:b]} for a, b in zip(starts, ends, strict=False))


def decode_masks(rles: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> MaskRuns:
    """The runs of COCO compressed RLEs of one image.

    Args:
        rles: {"size": [H, W], "counts": text or bytes}.
        shape: (H, W) of the image in px.

    Raises:
        DataError: an RLE has another size, or its counts are no compressed RLE of that many pixels; which one is said.

    Example:
        >>> runs = decode_masks([{"size": [2, 2], "counts": "22"}], (2, 2))
        >>> runs.start.tolist(), runs.end.tolist()
        ([2], [4])
    """
    read = _read_masks(rles, shape)
    if isinstance(read, MaskRuns):
        return read
    number, what = read
    raise DataError(explain(got=f"mask no. {number + 1}: {what}", need="COCO RLE", hint="write the masks again"))


def find_rle_fault(rles: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> tuple[int, str] | None:
    """Number (from 0) of an RLE that cannot be read, and why in a few words; None if all are well."""
    read = _read_masks(rles, shape)
    return None if isinstance(read, MaskRuns) else read


def _read_masks(rles: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> MaskRuns | tuple[int, str]:
    for number, rle in enumerate(rles):
        if list(rle["size"]) != list(shape):
            return number, f"RLE of size {rle['size']} in an image of {list(shape)}"
        if not isinstance(rle["counts"], str | bytes) or not rle["counts"]:
            return number, "RLE counts are no text"
    texts = [c.encode("utf-8", "replace") if isinstance(c := rle["counts"], str) else c for rle in rles]
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    digits = np.frombuffer(b"".join(texts), np.uint8).astype(np.int64) - 48
    goes_on = (digits & 32) > 0
    # A text that ends in the middle of a number would run on into the next mask's.
    is_last = np.diff(owner, append=len(texts)) > 0
    bad = (digits < 0) | (digits > 63) | (goes_on & is_last)
    ends = np.flatnonzero(~goes_on)
    if not bad.any():
        bad[ends] = np.diff(ends, prepend=-1) > MOST_DIGITS
    if bad.any():
        return int(owner[bad.argmax()]), "RLE counts cannot be read"
    return _sum_counts(_read_values(digits), owner[ends], len(texts), shape)


def _sum_counts(values: np.ndarray, mask: np.ndarray, count: int, shape: tuple[int, int]) -> MaskRuns | tuple[int, str]:
    """Runs from the numbers in the texts, of which ``mask`` says whose they are."""
    pixels = shape[0] * shape[1]
    # Bounded before they are summed, so that no sum can overflow into the right one.
    wrong = np.abs(values) > pixels
    if not wrong.any():
        per_mask = np.bincount(mask, minlength=count)
        first = np.cumsum(per_mask) - per_mask
        position = np.arange(values.size) - first[mask]
        # From the fourth on a count is stored as its difference from the one before the last: two interleaved sums.
        counts = np.where(position == 0, values, 0)
        for chain in (position % 2 == 1, (position % 2 == 0) & (position > 0)):
            total = np.cumsum(np.where(chain, values, 0))
            # The first count of a mask is in neither sum or starts one, so what was summed before it is taken off.
            before = total[first] - np.where(chain, values, 0)[first]
            counts[chain] = (total - before[mask])[chain]
        end = np.cumsum(counts)
        end -= (end[first] - counts[first])[mask]
        wrong = (counts < 0) | (counts > pixels)
        if not wrong.any():
            wrong = (end[np.cumsum(per_mask) - 1] != pixels)[mask]
    if wrong.any():
        return int(mask[wrong.argmax()]), f"RLE counts do not add up to {pixels} pixels"
    inside = (position % 2 == 1) & (counts > 0)
    return MaskRuns(shape=shape, count=count, mask=mask[inside], start=(end - counts)[inside], end=end[inside])


def _read_values(digits: np.ndarray) -> np.ndarray:
    """Signed numbers from digits of 5 bits, low ones first; 32 marks that another digit follows."""
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([np.zeros(min(last.size, 1), np.int64), last[:-1] + 1])
    lengths = last - first + 1
    place = np.arange(digits.size) - np.repeat(first, lengths)
    values = np.add.reduceat((digits & 31) << (5 * place), first) if last.size else np.zeros(0, np.int64)
    return values - np.where(digits[last] & 16, np.int64(1) << (5 * lengths), 0)


def _to_text(values: np.ndarray) -> tuple[str, np.ndarray]:
    """Digits of all values, one after the other, and (V,) how many each takes."""
    rest, unfinished = values.copy(), np.ones(values.size, bool)
    columns, written = [], []
    while unfinished.any():
        digit = rest & 31
        rest = rest >> 5
        goes_on = np.where(digit & 16, rest != -1, rest != 0)
        columns.append((digit + 32 * goes_on + 48).astype(np.uint8))
        written.append(unfinished)
        unfinished = unfinished & goes_on
    if not columns:
        return "", np.zeros(0, np.int64)
    used = np.stack(written, axis=1)
    return np.stack(columns, axis=1)[used].tobytes().decode("ascii"), used.sum(axis=1)
