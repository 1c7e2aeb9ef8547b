"""The cells of one field as masks with classes and, where predicted, scores: the form in which they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellvision.errors import DataError, ShapeError, explain
from cellvision.metrics.instances.mask_runs import MaskRuns, decode_masks, encode_masks, find_runs
from cellvision.runtime.cells import Cells
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.detections.masks import encode_detections
from cellvision.types import IGNORE


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceField:
    """N cells of one field; their masks may overlap. Truth has no scores, predictions have nothing ignored.

    Attributes:
        shape: (H, W) of the image in px.
        class_id: (N,) int64, 1..K-1; IGNORE for an ignored cell of unknown class, which then stands for any class.
        boxes: (N, 4) float64, left, top, right, bottom in px; pixel (0, 0) covers 0..1 in both directions.
        rles: N COCO compressed RLEs {"size": [H, W], "counts": text}.
        areas: (N,) float64 in px, by which cells are small, medium or large. COCO files have their own for true cells
            (of the polygon, say); the number of pixels of the mask is counted apart from it.
        score: (N,) float64, finite, higher is surer; None for truth.
        box_score: (N,) float64, where boxes compete by another score than masks; else None.
        ignored: (N,) bool, true cells that are no miss where nothing finds them ("crowd", "uncertain").
        cell_class: (N,) int64, the classes that predictions get as separate cells, where that is decided by another
            rule than the class they were found as; else None.

    Raises:
        ShapeError: the columns are not of one length.
        DataError: a score is NaN or infinite, or a cell of class IGNORE is not ignored.

    Example:
        >>> field = InstanceField.from_label_image(np.array([[1, 1], [0, 2]]), np.array([1, 2]))
        >>> field.boxes.tolist(), field.areas.tolist()
        ([[0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 2.0, 2.0]], [2.0, 1.0])
    """

    shape: tuple[int, int]
    class_id: np.ndarray
    boxes: np.ndarray
    rles: tuple[Mapping[str, Any], ...]
    areas: np.ndarray
    score: np.ndarray | None
    box_score: np.ndarray | None
    ignored: np.ndarray
    cell_class: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.rles)
        columns = {"class_id": self.class_id, "areas": self.areas, "ignored": self.ignored}
        columns |= {} if self.cell_class is None else {"cell_class": self.cell_class}
        scores = {name: s for name in ("score", "box_score") if (s := getattr(self, name)) is not None}
        wrong = {name: values.shape for name, values in (columns | scores).items() if values.shape != (count,)}
        if self.boxes.shape != (count, 4):
            wrong["boxes"] = self.boxes.shape
        if wrong:
            raise ShapeError(
                explain(
                    got=f"{count} masks with {', '.join(f'{name} {shape}' for name, shape in wrong.items())}",
                    need="one row of each per mask",
                    hint="np.zeros((0, 4)) boxes and so on for a field without cells",
                )
            )
        if (self.class_id[~self.ignored] == IGNORE).any():
            raise DataError(
                explain(
                    got=f"cells of class {IGNORE} that are not ignored",
                    need="a class from 1 up",
                    hint="ignored=class_id == IGNORE",
                )
            )
        for name, values in scores.items():
            if not np.isfinite(values).all():
                raise DataError(
                    explain(
                        got=f"a {name} of {values[~np.isfinite(values)][0]}",
                        need="finite numbers",
                        hint="look for NaN in the net's outputs",
                    )
                )

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_rles(
        cls,
        rles: Sequence[Mapping[str, Any]],
        *,
        shape: tuple[int, int],
        class_id: np.ndarray,
        score: np.ndarray | None = None,
        box_score: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        areas: np.ndarray | None = None,
        ignored: np.ndarray | None = None,
        cell_class: np.ndarray | None = None,
    ) -> InstanceField:
        """A field of masks as COCO writes them, e.g. from ``encode_detections``.

        Args:
            rles: N compressed RLEs of an image of ``shape``.
            shape: (H, W) in px.
            class_id: (N,) integers.
            score: (N,) for predictions.
            box_score: (N,) where boxes compete by another score.
            boxes: (N, 4) left, top, right, bottom; None, or NaN in a row, takes the tight box of the mask.
            areas: (N,) in px; None, or NaN, counts the pixels of the mask.
            ignored: (N,) bool; None ignores no cell.
            cell_class: (N,) integers, the classes as separate cells; None for those of ``class_id``.

        Raises:
            DataError: an RLE cannot be read, or a score is not finite.
            ShapeError: the columns are not of one length.

        Example:
            >>> square = {"size": [2, 2], "counts": "22"}
            >>> InstanceField.from_rles([square], shape=(2, 2), class_id=np.array([1])).boxes.tolist()
            [[1.0, 0.0, 2.0, 2.0]]
        """
        runs = decode_masks(rles, shape)
        return cls(
            shape=shape,
            class_id=class_id.astype(np.int64),
            boxes=_fill(boxes, runs.compute_boxes()),
            rles=tuple(rles),
            areas=_fill(areas, runs.compute_areas().astype(np.float64)),
            score=None if score is None else score.astype(np.float64),
            box_score=None if box_score is None else box_score.astype(np.float64),
            ignored=np.zeros(len(rles), bool) if ignored is None else ignored.astype(bool),
            cell_class=None if cell_class is None else cell_class.astype(np.int64),
        )

    @classmethod
    def from_label_image(
        cls, label_image: np.ndarray, cell_classes: np.ndarray, *, score: np.ndarray | None = None
    ) -> InstanceField:
        """The cells of a label image; those of class IGNORE are ignored.

        Args:
            label_image: (H, W) integers, 0 = background; gaps in numbering are fine.
            cell_classes: (N,) integers; entry i is the class of label i + 1.
            score: (N,) for predictions, in the same order; None for truth.

        Raises:
            ShapeError: a label has no class or no score.
        """
        labels, runs = find_runs(label_image)
        largest = int(labels.max(initial=0))
        for name, values in (("classes", cell_classes), ("scores", score)):
            if values is not None and (values.ndim != 1 or len(values) < largest):
                raise ShapeError(
                    explain(
                        got=f"label {largest} but {name} of shape {values.shape}",
                        need="one per label",
                        hint="entry i belongs to label i + 1",
                    )
                )
        class_id = cell_classes[labels - 1].astype(np.int64)
        return cls._from_runs(runs, class_id, None if score is None else score[labels - 1], class_id == IGNORE)

    @classmethod
    def from_cells(cls, cells: Cells) -> InstanceField:
        """What was found in one image; every cell has score 1 where the net gives none.

        Raises:
            DataError: the label image was streamed to a file.
        """
        if cells.label_image is None:
            raise DataError(
                explain(got="cells without their label image", need="it in memory", hint="predict without a folder")
            )
        labels, runs = find_runs(cells.label_image)
        # Rows by label, for a label without a row has no class.
        row = np.searchsorted(cells.label, labels)
        score = np.ones(len(cells)) if cells.score is None else cells.score
        return cls._from_runs(runs, cells.class_id[row], score[row], np.zeros(labels.size, bool))

    @classmethod
    def from_detections(
        cls,
        detections: Detections,
        *,
        shape: tuple[int, int],
        mask_threshold: float,
        cell_class: np.ndarray | None = None,
    ) -> InstanceField:
        """All that a net found, low scores and overlaps too, as average precision wants them.

        Args:
            detections: boxes in px of the field.
            shape: (H, W) of the field.
            mask_threshold: smallest probability of a cell's pixel, in (0, 1].
            cell_class: (D,) integers, the classes as separate cells; None for those of the detections.
        """
        height, width = shape
        return cls.from_rles(
            encode_detections(detections, shape=shape, mask_threshold=mask_threshold),
            shape=shape,
            class_id=detections.class_id,
            score=detections.rank_scores,
            box_score=detections.scores,
            boxes=detections.boxes.clip(0, [width, height, width, height]),
            cell_class=cell_class,
        )

    @classmethod
    def _from_runs(
        cls, runs: MaskRuns, class_id: np.ndarray, score: np.ndarray | None, ignored: np.ndarray
    ) -> InstanceField:
        return cls(
            shape=runs.shape,
            class_id=class_id.astype(np.int64),
            boxes=runs.compute_boxes(),
            rles=encode_masks(runs),
            areas=runs.compute_areas().astype(np.float64),
            score=None if score is None else score.astype(np.float64),
            box_score=None,
            ignored=ignored,
        )


def _fill(given: np.ndarray | None, own: np.ndarray) -> np.ndarray:
    """What is given, and where that is NaN, the mask's own; a wrong shape is passed on, to be refused."""
    if given is None:
        return own
    given = given.astype(np.float64)
    return np.where(np.isnan(given), own, given) if given.shape == own.shape else given
