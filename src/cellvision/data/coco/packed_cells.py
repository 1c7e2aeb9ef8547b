"""All annotations of a data set in one buffer, so that loader processes share them instead of copying them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class CellRow(NamedTuple):
    """One annotation, without what nobody reads.

    Attributes:
        category: its category id.
        is_crowd: whether it marks a region and no cell.
        segmentation: polygons, or either form of RLE, as in the file.
        measures: what else was asked for, such as "area", as in the file; None where nothing was.
    """

    category: Any
    is_crowd: bool
    segmentation: Any
    measures: dict[str, Any] | None = None


class PackedCells:
    """The annotations of each image, kept as JSON text and decoded when asked for.

    A loader process begins as a copy of its parent's memory that is shared page by page until written to, and looking
    at a Python object writes to it: its reference count. A million annotations as objects are thus copied into every
    process within an epoch; bytes of one array are not. JSON and not arrays of floats, because it is exact, knows
    polygons and RLE alike, and is shorter than float64. Where processes are spawned and not forked (Windows, macOS),
    each gets a copy of the text, an eighth of what the objects took.

    Args:
        texts_per_image: annotations of each image as ``pack_cell`` gives them, in the order of the images.

    Example:
        >>> packed = PackedCells([[pack_cell(1, is_crowd=False, segmentation="[[0, 0, 2, 0, 2, 2]]")], []])
        >>> packed[0][0].segmentation, packed[1], len(packed)
        ([[0, 0, 2, 0, 2, 2]], [], 2)
    """

    def __init__(self, texts_per_image: Iterable[Sequence[str]]) -> None:
        joined, ends = bytearray(), [0]
        for texts in texts_per_image:
            joined += f"[{','.join(texts)}]".encode("ascii")
            ends.append(len(joined))
        self._joined = np.frombuffer(joined, np.uint8)
        self._ends = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> list[CellRow]:
        if not 0 <= index < len(self):  # also ends a plain ``for`` loop
            raise IndexError(f"image {index} of {len(self)}")
        text = self._joined[self._ends[index] : self._ends[index + 1]].tobytes()
        return [CellRow(*row) for row in json.loads(text)]


def pack_cell(
    category: int | str, *, is_crowd: bool, segmentation: str, measures: Mapping[str, Any] | None = None
) -> str:
    """JSON text of a ``CellRow`` whose segmentation is JSON text already."""
    more = f",{json.dumps(measures)}" if measures else ""
    return f"[{json.dumps(category)},{'true' if is_crowd else 'false'},{segmentation}{more}]"
