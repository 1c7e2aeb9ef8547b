"""The scores of a file of predictions as tables on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.commands.evaluation.instances import SCORE_THRESHOLD, InstanceEvaluation
from cellvision.commands.lines import to_line
from cellvision.metrics.instances.coco_ap import KINDS, SIZES

_COUNTS = ("pred_count", "true_count", "found", "missed", "false", "merged", "split", "inexact")


def print_evaluation(evaluation: InstanceEvaluation) -> None:
    """Print all scores as tables on stdout."""
    console = Console()
    scores = evaluation.scores
    sizes = tuple(size for size in SIZES if size != "all")
    most = evaluation.coco[0].max_dets
    names = ("ap", "ap50", "ap75", *(f"ap_{s}" for s in sizes), *(f"ar_{m}" for m in most), "afnr")
    console.print(f"COCO: {evaluation.images} images, up to {most[-1]} predictions each, sizes of {evaluation.areas}")
    if evaluation.unpredicted:
        fate = "left out" if evaluation.only_predicted else "their cells are missed; --only-predicted leaves them out"
        console.print(f"images of the truth without any prediction: {evaluation.unpredicted} ({fate})")
    table = Table("score", *KINDS)
    for name in names:
        table.add_row(name, *(_format(scores.get(f"{kind}/{name}")) for kind in KINDS))
    console.print(table)
    if evaluation.per_class:
        _print_classes(console, evaluation)
    how = "default" if evaluation.score_threshold == SCORE_THRESHOLD else "given"
    if evaluation.fitted:
        how = f"fitted on these images to {evaluation.fitted.objective}"
    console.print(f"cells: predictions of score {evaluation.score_threshold:.4g} and more ({how}), overlaps painted:")
    console.print(f"from {evaluation.min_visible:g} visible and {evaluation.min_area_px} px up, the best score on top")
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


def _format(value: float | None, name: str = "") -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if name.removeprefix("instance/") in _COUNTS else f"{value:.3f}"
