"""``cellvision evaluate PREDICTIONS.json --truth FILE``: every score of cells from one file of predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cellvision.data.coco.file import load_coco
from cellvision.data.coco.packed_cells import CellRow
from cellvision.errors import ConfigError, DataError, explain, is_finite_number
from cellvision.metrics.instances.coco_ap import AREAS, KINDS, MAX_DETS, SIZES, CocoAp, check_max_dets, compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.file import LARGEST_PX, load_predictions, read_boxes, to_rle
from cellvision.metrics.instances.overlaps import Overlaps, compute_overlaps, join_overlaps
from cellvision.metrics.instances.painted_field import MIN_AREA_PX, MIN_VISIBLE, check_painting, paint_field
from cellvision.metrics.instances.score_threshold import ScoreThreshold, fit_to_overlaps
from cellvision.metrics.instances.scores import (
    InstanceScores,
    compute_instance_scores,
    compute_panoptic_per_class,
    select_class,
)
from cellvision.types import IGNORE

if TYPE_CHECKING:
    from cellvision.runtime.maps.tile_run import Progress

SCORE_THRESHOLD = 0.5
_UNCERTAIN = "uncertain"


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceTruth:
    """The true cells of a COCO file.

    Attributes:
        path: the file.
        fields: by image id, ascending.
        classes: background first, then the categories by their ids; a category "uncertain" is none.
        class_of: class 1..K-1 by category id.
    """

    path: Path
    fields: dict[Any, InstanceField]
    classes: tuple[str, ...]
    class_of: dict[Any, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class InstanceEvaluation:
    """Scores of a file of predictions.

    Attributes:
        predictions, truth: the files.
        classes: background first.
        images: number of images.
        unpredicted: images of the truth without any prediction.
        only_predicted: whether these were left out; else their cells count as missed.
        areas: name of the size bounds, see ``coco_ap.AREAS``.
        coco: average precision of masks and of boxes.
        instances: scores of the separate cells from the score threshold up.
        per_class: the same of each class alone; empty where there is only one.
        panoptic: panoptic quality per class and its mean, flat; empty where there is only one class.
        score_threshold: smallest score that counts in ``instances``.
        min_visible, min_area_px: how predictions that overlap became separate cells, see `paint_field`.
        fitted: how the threshold was chosen, or None where it was given.
    """

    predictions: Path
    truth: Path
    classes: tuple[str, ...]
    images: int
    unpredicted: int
    only_predicted: bool
    areas: str
    coco: tuple[CocoAp, ...]
    instances: InstanceScores
    per_class: dict[str, InstanceScores]
    panoptic: dict[str, float]
    score_threshold: float
    min_visible: float
    min_area_px: int
    fitted: ScoreThreshold | None

    @property
    def scores(self) -> dict[str, float]:
        """Flat "mask/..", "box/.." and "instance/.."; undefined ones are absent."""
        flat: dict[str, float] = {}
        for one in self.coco:
            flat |= one.to_dict()
        return flat | self.instances.to_dict() | self.panoptic

    def to_record(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {
            "predictions": str(self.predictions),
            "truth": str(self.truth),
            "images": self.images,
            "images_without_predictions": self.unpredicted,
            "classes": list(self.classes),
            "settings": {
                "max_dets": list(self.coco[0].max_dets),
                "areas": {"name": self.areas} | dict(zip(SIZES, map(list, AREAS[self.areas]), strict=True)),
                "score_threshold": self.score_threshold,
                "min_visible": self.min_visible,
                "min_area_px": self.min_area_px,
                "only_predicted": self.only_predicted,
                "fitted": self.fitted and asdict(self.fitted),
            },
            "scores": self.scores,
            "per_iou": {
                one.kind: {"precision": one.list_precisions(), "recall": one.list_recalls()} for one in self.coco
            },
            "per_class": {name: one.to_dict() for name, one in self.per_class.items()},
        }


def load_truth(path: Path, *, skip_faulty: bool = False) -> InstanceTruth:
    """The true cells of a COCO file: polygons or RLE; "area" and "bbox" as they are there, or else of the mask.

    Crowds ("iscrowd") are ignored, and so are the cells of a category "uncertain", which can be of any class.

    Args:
        path: the file.
        skip_faulty: leave out annotations without a usable segmentation, and say how many; else they are an error.

    Raises:
        DataError: the file is none, has faults, or has no annotation.
    """
    faulty_cells = "skip" if skip_faulty else "error"
    file = load_coco(path, repeated_images="keep", faulty_cells=faulty_cells, measures=("area", "bbox"))
    if file.skipped:
        print(f"{path}: {len(file.skipped)} annotations left out, first {file.skipped[0]}", file=sys.stderr)
    if not any(len(file.cells[i]) for i in range(len(file.images))):
        raise DataError(
            explain(got=f"{path} has no annotations", need="true cells to score against", hint="another split")
        )
    names = [name for name in file.categories.values() if name != _UNCERTAIN]
    class_of = {id_: names.index(name) + 1 for id_, name in file.categories.items() if name != _UNCERTAIN}
    order = sorted(range(len(file.images)), key=lambda i: _rank_id(file.images[i]["id"]))
    fields = {file.images[i]["id"]: _build_truth(file.cells[i], file.images[i], class_of) for i in order}
    return InstanceTruth(path=path, fields=fields, classes=("background", *names), class_of=class_of)


def _rank_id(id_: int | str) -> tuple[bool, int | str]:
    """Numbers before texts."""
    return isinstance(id_, str), id_


def evaluate_predictions(
    predictions: Path,
    truth: InstanceTruth,
    *,
    max_dets: tuple[int, ...] = MAX_DETS,
    areas: str = "livecell",
    score_threshold: float | None = SCORE_THRESHOLD,
    min_visible: float = MIN_VISIBLE,
    min_area_px: int = MIN_AREA_PX,
    only_predicted: bool = False,
    progress: Progress | None = None,
) -> InstanceEvaluation:
    """All scores of a COCO results file.

    Average precision is of the predictions as they are, overlaps included; all else is of separate cells, painted as
    a net's cells are when they are delivered.

    Args:
        predictions: the file, see `load_predictions`.
        truth: from `load_truth`.
        max_dets: predictions per image and class that count for average precision, ascending.
        areas: "livecell" or "coco".
        score_threshold: smallest score that counts for the scores that need one; None chooses the best on these very
            images (`fit_to_overlaps`).
        min_visible: how predictions that overlap become separate cells, see `paint_field`.
        min_area_px: the same.
        only_predicted: leave out images without any prediction, for a truth of more images than were predicted; else
            their cells count as missed.
        progress: told after each image: (images done, images in all).

    Raises:
        ConfigError: max_dets do not ascend, or another number is out of its range.
        DataError: the file is none or has faults, there is nothing to choose a threshold by, or no image is left.
    """
    check_max_dets(max_dets)
    painting: dict[str, Any] = {"min_visible": min_visible, "min_area_px": min_area_px}
    check_painting(**painting)
    _check_threshold(score_threshold)
    preds, truth, unpredicted = _load_beside(truth, predictions, only_predicted=only_predicted)
    found, painted = _compare(preds, truth, progress=progress, **painting)
    fitted = fit_to_overlaps(painted) if score_threshold is None else None
    threshold = fitted.threshold if fitted else float(score_threshold or 0.0)
    settings: dict[str, Any] = {"classes": truth.classes, "max_dets": max_dets, "areas": areas}
    return InstanceEvaluation(
        predictions=predictions,
        truth=truth.path,
        classes=truth.classes,
        images=len(truth.fields),
        unpredicted=unpredicted,
        only_predicted=only_predicted,
        areas=areas,
        coco=tuple(compute_coco_ap(found, kind=kind, **settings) for kind in KINDS),
        instances=compute_instance_scores(painted, score_threshold=threshold),
        per_class={
            name: compute_instance_scores(select_class(painted, k), score_threshold=threshold)
            for k, name in enumerate(truth.classes[1:] if len(truth.classes) > 2 else (), start=1)
        },
        panoptic=compute_panoptic_per_class(painted, truth.classes, score_threshold=threshold),
        score_threshold=threshold,
        fitted=fitted,
        **painting,
    )


def _check_threshold(score_threshold: float | None) -> None:
    if score_threshold is not None and not 0.0 <= score_threshold <= 1.0:
        got, hint = f"score_threshold={score_threshold}", f"--score-threshold {SCORE_THRESHOLD}"
        raise ConfigError(explain(got=got, need="a number from 0 to 1", hint=hint))


def _load_beside(
    truth: InstanceTruth, predictions: Path, *, only_predicted: bool
) -> tuple[dict[Any, InstanceField], InstanceTruth, int]:
    """The predictions by image id, the truth to score them against, and the number of images without any."""
    shapes = {image: field.shape for image, field in truth.fields.items()}
    preds = load_predictions(predictions, images=shapes, categories=truth.class_of)
    kept = {image: field for image, field in truth.fields.items() if len(preds[image])}
    if only_predicted and not kept:
        hint = "the same without --only-predicted"
        raise DataError(explain(got=f"{predictions} has no prediction", need="one for --only-predicted", hint=hint))
    return preds, replace(truth, fields=kept) if only_predicted else truth, len(preds) - len(kept)


def _compare(
    preds: dict[Any, InstanceField],
    truth: InstanceTruth,
    *,
    min_visible: float,
    min_area_px: int,
    progress: Progress | None,
) -> tuple[Overlaps, Overlaps]:
    """What the predictions, which are used up, share with the truth: as they are, and as separate cells."""
    found, painted = [], []
    for image, field in truth.fields.items():
        pred = preds.pop(image)
        found.append(compute_overlaps(pred, field))
        painted.append(compute_overlaps(paint_field(pred, min_visible=min_visible, min_area_px=min_area_px), field))
        if progress:
            progress(len(found), len(truth.fields))
    return join_overlaps(found), join_overlaps(painted)


def write_evaluation(evaluation: InstanceEvaluation, path: Path) -> None:
    """Write the evaluation as JSON; a path from `StagedFiles` gets its name when the file is complete."""
    text = json.dumps(evaluation.to_record(), indent=2, ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair, which JSON can name and UTF-8 cannot, stays the escape that it was in the truth.
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _build_truth(rows: Sequence[CellRow], image: dict[str, Any], class_of: dict[Any, int]) -> InstanceField:
    shape = (image["height"], image["width"])
    class_id = np.array([class_of.get(row.category, IGNORE) for row in rows], np.int64)
    measures = [row.measures or {} for row in rows]
    return InstanceField.from_rles(
        [to_rle(row.segmentation, shape) for row in rows],
        shape=shape,
        class_id=class_id,
        boxes=read_boxes([_take_box(found.get("bbox")) for found in measures]),
        areas=np.array([_take_area(found.get("area")) for found in measures], np.float64),
        ignored=np.array([row.is_crowd for row in rows], bool) | (class_id == IGNORE),
    )


def _take_area(area: Any) -> float:
    """COCO's area, or NaN where it is none."""
    return float(area) if is_finite_number(area) and area >= 0 else float("nan")


def _take_box(box: Any) -> list[float] | None:
    """COCO's box if it is one: tools leave it out, empty or null."""
    is_box = isinstance(box, list) and len(box) == 4 and all(is_finite_number(edge) for edge in box)
    return box if is_box and max(map(abs, box)) <= LARGEST_PX and min(box[2:]) >= 0 else None
