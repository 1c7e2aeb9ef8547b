"""Time of COCO's average precision on crowded fields: pycocotools against cellvision, on one processor thread.

python benchmarks/coco_evaluators.py --images 200 --cells 1000

Fields of ellipses on a jittered grid, predictions as distorted copies, some cells missed and some found twice. Both
start from the parsed JSON and end with precision and recall of masks and of boxes, take turns, and must agree. The
time of pycocotools grows with the square of the cells: 200 images take most of an hour a round, so try few first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellvision.metrics.instances.coco_ap import AREAS, compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.mask_runs import MaskRuns, encode_masks
from cellvision.metrics.instances.overlaps import compute_overlaps, join_overlaps

SHAPE = (520, 704)
MAX_DETS = (100, 500, 2000)
Curves = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Draw the fields, time both, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--cells", type=int, default=1000, help="per image")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    truth, predictions = draw_coco(images=chosen.images, cells=chosen.cells, shape=SHAPE)
    evaluators = {"pycocotools": run_pycocotools, "cellvision": run_cellvision}
    seconds: dict[str, list[float]] = {f"{name} {kind}": [] for kind in ("mask", "box") for name in evaluators}
    difference = 0.0
    for _ in range(chosen.rounds):
        for kind in ("mask", "box"):
            found = {}
            for name, evaluate in evaluators.items():
                found[name], taken = measure(evaluate, truth, predictions, kind)
                seconds[f"{name} {kind}"].append(taken)
            for one, other in zip(*found.values(), strict=True):
                difference = max(difference, float(np.abs(one - other).max()))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        kind: round(medians[f"pycocotools {kind}"] / medians[f"cellvision {kind}"], 1) for kind in ("mask", "box")
    }
    facts = {"images": chosen.images, "cells": len(truth["annotations"]), "predictions": len(predictions)}
    facts |= {"rounds": chosen.rounds, "median_seconds": {name: round(value, 3) for name, value in medians.items()}}
    print(json.dumps(facts | {"times_faster": ratios, "largest_difference": difference}))


def measure(
    evaluate: Callable[[dict[str, Any], list[dict[str, Any]], str], Curves],
    truth: dict[str, Any],
    predictions: list[dict[str, Any]],
    kind: str,
) -> tuple[Curves, float]:
    """What ``evaluate`` finds, and the seconds it takes, copies of its input left out."""
    # pycocotools writes into what it is given.
    truth = truth | {"annotations": [dict(row) for row in truth["annotations"]]}
    drop = "bbox" if kind == "mask" else "segmentation"
    own = [{key: value for key, value in row.items() if key != drop} for row in predictions]
    rows = own if evaluate is run_pycocotools else predictions
    began = time.perf_counter()
    found = evaluate(truth, rows, kind)
    return found, time.perf_counter() - began


def run_pycocotools(truth: dict[str, Any], predictions: list[dict[str, Any]], kind: str) -> Curves:
    """(precision, recall)."""
    with contextlib.redirect_stdout(io.StringIO()):
        true = COCO()
        true.dataset = truth
        true.createIndex()
        evaluator = COCOeval(true, true.loadRes(predictions), {"mask": "segm", "box": "bbox"}[kind])
        evaluator.params.maxDets = list(MAX_DETS)
        evaluator.params.areaRng = [list(bounds) for bounds in AREAS["livecell"]]
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def run_cellvision(truth: dict[str, Any], predictions: list[dict[str, Any]], kind: str) -> Curves:
    """(precision, recall); the overlaps of masks and boxes are both computed, for all other scores need them too."""
    rows: dict[int, tuple[list[Any], list[Any]]] = {image["id"]: ([], []) for image in truth["images"]}
    for row in predictions:
        rows[row["image_id"]][0].append(row)
    for row in truth["annotations"]:
        rows[row["image_id"]][1].append(row)
    parts = []
    for image in truth["images"]:
        sides = []
        for is_truth, own in zip((False, True), rows[image["id"]], strict=True):
            boxes = np.array([row["bbox"] for row in own], np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            sides.append(
                InstanceField.from_rles(
                    [row["segmentation"] for row in own],
                    shape=(image["height"], image["width"]),
                    class_id=np.array([row["category_id"] for row in own], np.int64),
                    score=None if is_truth else np.array([row["score"] for row in own], np.float64),
                    boxes=boxes,
                    areas=np.array([row["area"] for row in own], np.float64) if is_truth else None,
                    ignored=np.array([row["iscrowd"] for row in own], bool) if is_truth else None,
                )
            )
        parts.append(compute_overlaps(*sides))
    found = compute_coco_ap(join_overlaps(parts), kind=kind, classes=("background", "cell"), max_dets=MAX_DETS)
    return found.precision, found.recall


def draw_coco(*, images: int, cells: int, shape: tuple[int, int]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Truth and predictions as parsed JSON; one true cell in a hundred is a crowd, one in five is found twice."""
    rng = np.random.default_rng(0)
    names = [{"id": i + 1, "file_name": f"{i}.png", "height": shape[0], "width": shape[1]} for i in range(images)]
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for image in names:
        ellipses = draw_ellipses(rng, cells=cells, shape=shape)
        doubles = ellipses[rng.random(cells) < 0.2]
        found = np.concatenate([distort(rng, ellipses, 0.06), distort(rng, doubles, 0.12)])
        found = found[rng.random(len(found)) < 0.95]
        for kind, drawn in (("true", ellipses), ("predicted", found)):
            runs = to_runs(drawn, shape)
            boxes, areas = runs.compute_boxes(), runs.compute_areas()
            boxes[:, 2:] -= boxes[:, :2]
            for rle, box, area in zip(encode_masks(runs), boxes.tolist(), areas.tolist(), strict=True):
                row = {"image_id": image["id"], "category_id": 1, "segmentation": rle, "bbox": box}
                if kind == "true":
                    row |= {"id": len(annotations) + 1, "area": area, "iscrowd": int(rng.random() < 0.01)}
                    annotations.append(row)
                else:
                    predictions.append(row | {"score": round(float(rng.random()), 4)})
    return {"images": names, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}, predictions


def draw_ellipses(rng: np.random.Generator, *, cells: int, shape: tuple[int, int]) -> np.ndarray:
    """(N, 4) float64 centre y, centre x, half height, half width in px, one in each place of a grid that fills it."""
    columns = int(np.ceil(np.sqrt(cells * shape[1] / shape[0])))
    pitch = np.array([shape[0] / -(-cells // columns), shape[1] / columns])
    centre = (np.stack(np.divmod(np.arange(cells), columns), axis=1) + 0.5) * pitch
    centre += rng.normal(0, 0.1, (cells, 2)) * pitch
    return np.concatenate([centre, rng.uniform(0.3, 0.5, (cells, 2)) * pitch], axis=1)


def distort(rng: np.random.Generator, ellipses: np.ndarray, spread: float) -> np.ndarray:
    """The same ellipses moved by and scaled by some ``spread`` of their size."""
    centre = ellipses[:, :2] + rng.normal(0, 2 * spread, (len(ellipses), 2)) * ellipses[:, 2:]
    return np.concatenate([centre, ellipses[:, 2:] * np.exp(rng.normal(0, spread, (len(ellipses), 2)))], axis=1)


def to_runs(ellipses: np.ndarray, shape: tuple[int, int]) -> MaskRuns:
    """The pixels of ellipses, each by itself, without an image of them."""
    high = np.ceil(ellipses[:, 3]).astype(np.int64)
    offset = np.arange(-high.max(), high.max() + 1)
    column = np.round(ellipses[:, 1:2]).astype(np.int64) + offset
    inside = 1 - ((column - ellipses[:, 1:2]) / ellipses[:, 3:]) ** 2
    half = ellipses[:, 2:3] * np.sqrt(np.maximum(inside, 0))
    top = np.clip(np.ceil(ellipses[:, :1] - half), 0, shape[0]).astype(np.int64)
    bottom = np.clip(np.floor(ellipses[:, :1] + half) + 1, 0, shape[0]).astype(np.int64)
    keep = (inside > 0) & (bottom > top) & (column >= 0) & (column < shape[1])
    mask, place = np.nonzero(keep)
    first = column[mask, place] * shape[0]
    return MaskRuns(shape=shape, count=len(ellipses), mask=mask, start=first + top[keep], end=first + bottom[keep])


if __name__ == "__main__":
    main()
