"""``cellvision evaluate PREDICTIONS.json --truth FILE``: every score of cells from one file of predictions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.commands.lines import to_line
from cellvision.data.coco.file import load_coco
from cellvision.errors import DataError, explain
from cellvision.metrics.coco_ap import AREAS, KINDS, MAX_DETS, SIZES, CocoAp, check_max_dets, compute_coco_ap
from cellvision.metrics.instance_field import InstanceField
from cellvision.metrics.instance_file import load_predictions, read_boxes, to_rle
from cellvision.metrics.instance_scores import (
    InstanceScores,
    compute_instance_scores,
    compute_panoptic_per_class,
    select_class,
)
from cellvision.metrics.overlaps import compute_overlaps, join_overlaps
from cellvision.metrics.score_threshold import ScoreThreshold, fit_to_overlaps
from cellvision.types import IGNORE

if TYPE_CHECKING:
    from cellvision.runtime.tile_run import Progress

_UNCERTAIN = "uncertain"
_COUNTS = ("pred_count", "true_count", "found", "missed", "false", "merged", "split", "inexact")


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
        areas: name of the size bounds, see ``coco_ap.AREAS``.
        coco: average precision of masks and of boxes.
        instances: scores above the score threshold.
        per_class: the same of each class alone; empty where there is only one.
        panoptic: panoptic quality per class and its mean, flat; empty where there is only one class.
        score_threshold: smallest score that counts in ``instances``.
        fitted: how the threshold was chosen, or None where it was given.
    """

    predictions: Path
    truth: Path
    classes: tuple[str, ...]
    images: int
    areas: str
    coco: tuple[CocoAp, ...]
    instances: InstanceScores
    per_class: dict[str, InstanceScores]
    panoptic: dict[str, float]
    score_threshold: float
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
            "classes": list(self.classes),
            "settings": {
                "max_dets": list(self.coco[0].max_dets),
                "areas": {"name": self.areas} | dict(zip(SIZES, map(list, AREAS[self.areas]), strict=True)),
                "score_threshold": self.score_threshold,
                "fitted": self.fitted and asdict(self.fitted),
            },
            "scores": self.scores,
            "per_iou": {
                one.kind: {"precision": one.list_precisions(), "recall": one.list_recalls()} for one in self.coco
            },
            "per_class": {name: one.to_dict() for name, one in self.per_class.items()},
        }


def load_truth(path: Path) -> InstanceTruth:
    """The true cells of a COCO file: polygons or RLE; "area" and "bbox" as they are there, or else of the mask.

    Crowds ("iscrowd") are ignored, and so are the cells of a category "uncertain", which can be of any class.

    Raises:
        DataError: the file is none, has faults, or has no annotation.
    """
    images = load_coco(path, repeated_images="keep")
    # Read again, for what trains a net does not need areas and boxes; the first reading has checked all the rest.
    annotations = json.loads(path.read_bytes())["annotations"]
    rows: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in images.images}
    for annotation in annotations.values() if isinstance(annotations, dict) else annotations:
        rows[annotation["image_id"]].append(annotation)
    if not any(rows.values()):
        raise DataError(
            explain(got=f"{path} has no annotations", need="true cells to score against", hint="another split")
        )
    names = [name for name in images.categories.values() if name != _UNCERTAIN]
    class_of = {id_: names.index(name) + 1 for id_, name in images.categories.items() if name != _UNCERTAIN}
    shapes = {image["id"]: (image["height"], image["width"]) for image in images.images}
    order = sorted(rows, key=lambda id_: (isinstance(id_, str), id_))
    fields = {id_: _build_truth(rows[id_], shapes[id_], class_of) for id_ in order}
    return InstanceTruth(path=path, fields=fields, classes=("background", *names), class_of=class_of)


def evaluate_predictions(
    predictions: Path,
    truth: InstanceTruth,
    *,
    max_dets: tuple[int, ...] = MAX_DETS,
    areas: str = "livecell",
    score_threshold: float | None = 0.5,
    progress: Progress | None = None,
) -> InstanceEvaluation:
    """All scores of a COCO results file.

    Args:
        predictions: the file, see `load_predictions`.
        truth: from `load_truth`.
        max_dets: predictions per image and class that count for average precision, ascending.
        areas: "livecell" or "coco".
        score_threshold: smallest score that counts for the scores that need one; None chooses the best on these very
            images (`fit_to_overlaps`).
        progress: told after each image: (images done, images in all).

    Raises:
        ConfigError: max_dets do not ascend.
        DataError: the file is none or has faults, or there is nothing to choose a threshold by.
    """
    check_max_dets(max_dets)
    shapes = {image: field.shape for image, field in truth.fields.items()}
    found = load_predictions(predictions, images=shapes, categories=truth.class_of)
    parts = []
    for image, field in truth.fields.items():
        parts.append(compute_overlaps(found.pop(image), field))
        if progress:
            progress(len(parts), len(truth.fields))
    overlaps = join_overlaps(parts)
    fitted = fit_to_overlaps(overlaps) if score_threshold is None else None
    threshold = fitted.threshold if fitted else float(score_threshold or 0.0)
    settings: dict[str, Any] = {"classes": truth.classes, "max_dets": max_dets, "areas": areas}
    several = truth.classes[1:] if len(truth.classes) > 2 else ()
    return InstanceEvaluation(
        predictions=predictions,
        truth=truth.path,
        classes=truth.classes,
        images=len(truth.fields),
        areas=areas,
        coco=tuple(compute_coco_ap(overlaps, kind=kind, **settings) for kind in KINDS),
        instances=compute_instance_scores(overlaps, score_threshold=threshold),
        per_class={
            name: compute_instance_scores(select_class(overlaps, k), score_threshold=threshold)
            for k, name in enumerate(several, start=1)
        },
        panoptic=compute_panoptic_per_class(overlaps, truth.classes, score_threshold=threshold),
        score_threshold=threshold,
        fitted=fitted,
    )


def write_evaluation(evaluation: InstanceEvaluation, path: Path) -> None:
    """Write the evaluation as JSON; a path from `StagedFiles` gets its name when the file is complete."""
    text = json.dumps(evaluation.to_record(), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def print_evaluation(evaluation: InstanceEvaluation) -> None:
    """Print all scores as tables on stdout."""
    console = Console()
    scores = evaluation.scores
    sizes = tuple(size for size in SIZES if size != "all")
    most = evaluation.coco[0].max_dets
    names = ("ap", "ap50", "ap75", *(f"ap_{s}" for s in sizes), *(f"ar_{m}" for m in most), "afnr")
    console.print(f"COCO: {evaluation.images} images, up to {most[-1]} predictions each, sizes of {evaluation.areas}")
    table = Table("score", *KINDS)
    for name in names:
        table.add_row(name, *(_format(scores.get(f"{kind}/{name}")) for kind in KINDS))
    console.print(table)
    if evaluation.per_class:
        _print_classes(console, evaluation)
    how = f"fitted on these images to {evaluation.fitted.objective}" if evaluation.fitted else "given"
    console.print(f"cells: predictions of score {evaluation.score_threshold:.4g} and more ({how})")
    table = Table("score", "cells")
    for name, value in (evaluation.instances.to_dict() | evaluation.panoptic).items():
        table.add_row(Text(to_line(name.removeprefix("instance/"))), _format(value, name))
    console.print(table)


def _print_classes(console: Console, evaluation: InstanceEvaluation) -> None:
    columns = ("mask/ap", "mask/ap50", "mask/afnr", "box/ap", "instance/f1", "instance/pq", "instance/true_count")
    table = Table("class", *(name.replace("/", "\n") for name in columns))
    for class_name, instances in evaluation.per_class.items():
        found = instances.to_dict() | {
            name: evaluation.scores[key]
            for name in columns
            if (key := f"{name}_class_{class_name}") in evaluation.scores
        }
        table.add_row(Text(to_line(class_name)), *(_format(found.get(name), name) for name in columns))
    console.print(table)


def _build_truth(rows: list[dict[str, Any]], shape: tuple[int, int], class_of: dict[Any, int]) -> InstanceField:
    class_id = np.array([class_of.get(row["category_id"], IGNORE) for row in rows], np.int64)
    crowd = np.array([bool(row.get("iscrowd")) for row in rows], bool)
    return InstanceField.from_rles(
        [to_rle(row["segmentation"], shape) for row in rows],
        shape=shape,
        class_id=class_id,
        boxes=read_boxes([_take_box(row.get("bbox")) for row in rows]),
        areas=np.array([_take_area(row.get("area")) for row in rows], np.float64),
        ignored=crowd | (class_id == IGNORE),
    )


def _take_area(area: Any) -> float:
    """COCO's area, or NaN where it is none."""
    return float(area) if isinstance(area, int | float) and 0 <= area < np.inf else float("nan")


def _take_box(box: Any) -> list[float] | None:
    """COCO's box if it is one: tools leave it out, empty or null."""
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int | float) for edge in box)
    return box if is_box and np.isfinite(box).all() and min(box[2:]) >= 0 else None


def _format(value: float | None, name: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if name.removeprefix("instance/") in _COUNTS else f"{value:.3f}"
