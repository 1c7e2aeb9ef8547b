"""What a comparison of a net with its graph found, and when that counts as agreement."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CELLS_TOLERANCE = 0.005
"""Share of cells that may be found by one side only: a pixel within rounding of a threshold can decide on a cell, and
an untrained net has thousands of them. Below 200 cells this means none."""

PIXELS_TOLERANCE = 0.005
"""Share of the cells' pixels, or of detections, that one side may have alone: boxes that overlap exactly as much as is
allowed. Of the cells' pixels, for of all pixels of a field with few cells they are hardly any."""


@dataclass(frozen=True, kw_only=True)
class ParityCase:
    """One batch through net and graph.

    Attributes:
        height, width, batch, image_dtype: what went in.
        max_difference, mean_difference: absolute, of each output.
        class_difference: share of pixels with another most probable class, 0..1.
        cells_net, cells_graph: number of cells after splitting, over the batch.
        cell_pixels: number of pixels that are part of a cell on either side, over the batch; 0 where not looked at.
        other_pixels: of these, those that are part of a cell on one side only.
        unmatched: share of detections that the other side does not have, 0..1; 0 for nets without detections.
    """

    height: int
    width: int
    batch: int
    image_dtype: str
    max_difference: dict[str, float]
    mean_difference: dict[str, float]
    class_difference: float
    cells_net: int
    cells_graph: int
    cell_pixels: int = 0
    other_pixels: int = 0
    unmatched: float = 0.0

    @property
    def pixel_difference(self) -> float:
        """Share of all pixels that are part of a cell on one side only, 0..1."""
        return self.other_pixels / (self.batch * self.height * self.width)


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """All cases of one comparison.

    Attributes:
        tolerance: largest difference that counted as agreement.
        loose: outputs that may differ by more: masks that are pooled in another way; their pixels are looked at.
        cases: at least one.
    """

    tolerance: float
    loose: tuple[str, ...] = ()
    cases: tuple[ParityCase, ...]

    @property
    def agrees(self) -> bool:
        """Whether every difference is within the tolerance and the cells are the same."""
        # Written so that a NaN, which compares as neither larger nor smaller, does not agree.
        close = all(
            value <= self.tolerance
            for case in self.cases
            for name, value in case.max_difference.items()
            if name not in self.loose
        )
        shared = all(case.unmatched <= PIXELS_TOLERANCE for case in self.cases)
        other_pixels = sum(case.other_pixels for case in self.cases)
        same_pixels = other_pixels <= PIXELS_TOLERANCE * sum(case.cell_pixels for case in self.cases)
        found_by_one = sum(abs(case.cells_net - case.cells_graph) for case in self.cases)
        same_cells = found_by_one <= CELLS_TOLERANCE * sum(case.cells_net for case in self.cases)
        return close and shared and same_pixels and same_cells

    def to_record(self) -> dict[str, Any]:
        """What the manifest keeps: the overall numbers, those of each output, then every case."""
        outputs = {
            name: {
                "max_difference": max(case.max_difference[name] for case in self.cases),
                "mean_difference": float(np.mean([case.mean_difference[name] for case in self.cases])),
            }
            for name in self.cases[0].max_difference
        }
        return {
            "tolerance": self.tolerance,
            "max_difference": max(output["max_difference"] for output in outputs.values()),
            "cell_pixels": sum(case.cell_pixels for case in self.cases),
            "other_pixels": sum(case.other_pixels for case in self.cases),
            "unmatched": max(case.unmatched for case in self.cases),
            "class_difference": max(case.class_difference for case in self.cases),
            "cells_net": sum(case.cells_net for case in self.cases),
            "cells_graph": sum(case.cells_graph for case in self.cases),
            "outputs": outputs,
            "cases": [asdict(case) for case in self.cases],
        }
