"""Which label file belongs to which image, and which cells are in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cellvision.data.dataset import list_faults
from cellvision.data.images import ImageInfo, image_stem, list_images, read_info
from cellvision.errors import DataError, explain

MAX_CELL_NUMBER = 2**24
"""A class table has an entry up to the highest number, so numbers cannot be as high as int32 allows."""


def find_cell_numbers(path: Path, label_image: np.ndarray) -> np.ndarray:
    """Numbers of the cells in a label image, ascending; DataError, naming the file, if one is over 2**24."""
    numbers = np.unique(label_image)
    if numbers[-1] > MAX_CELL_NUMBER:
        raise DataError(
            explain(
                got=f"{path} numbers a cell {numbers[-1]}",
                need=f"numbers up to {MAX_CELL_NUMBER}",
                hint="number the cells from 1 upwards",
            )
        )
    return numbers[numbers > 0]


def find_label_files(infos: Sequence[ImageInfo], folder: Path) -> list[Path]:
    """The label file of each image: the one in ``folder`` with the same stem and size (from its header).

    Raises:
        DataError: lists images without a label file, with several, or with one of another size.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in list_images(folder):
        by_stem.setdefault(image_stem(path), []).append(path)
    found, faults = [], []
    for info in infos:
        candidates = by_stem.get(image_stem(info.path), [])
        if len(candidates) != 1:
            faults.append(f"{info.path.name} has {', '.join(p.name for p in candidates) or 'no label file'}")
            continue
        size = read_info(candidates[0]).shape[1:]
        if size != info.shape[1:]:
            faults.append(f"{info.path.name} is {info.shape[1:]} px but {candidates[0].name} is {size}")
        found.append(candidates[0])
    if faults:
        raise DataError(
            explain(
                got=f"{folder}: {list_faults(faults)}",
                need="one label image of the same stem and size for each image",
                hint="check that both folders hold the same fields",
            )
        )
    return found
