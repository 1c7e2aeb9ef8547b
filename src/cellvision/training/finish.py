"""The end of a run: the best net is scored on held-out fields, beside a baseline without a net."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table

from cellvision.data.datamodule import CellDataModule
from cellvision.metrics.baseline import OtsuBaseline
from cellvision.metrics.cells import compute_field_score
from cellvision.metrics.state import CellMetrics
from cellvision.runtime.files.writers import StagedFiles
from cellvision.runtime.viability import Viability, compute_viability
from cellvision.training.callbacks import BestCheckpoint
from cellvision.training.checkpoint import load_net, replace_in_record
from cellvision.training.confusion import draw_confusions
from cellvision.training.field_report import FieldRow, draw_field_viability, write_field_table
from cellvision.training.gathering import gather
from cellvision.training.instance_fields import limit_score
from cellvision.training.instance_report import InstanceReport, describe_evaluation, fit_threshold
from cellvision.training.pictures import Pictures
from cellvision.training.task import SegmentationTask
from cellvision.training.tracking.tracker import keep_files

SHOWN = {
    "pixel/miou": "mean IoU, pixels",
    "pixel/foreground_dice": "Dice, foreground pixels",
    "pixel/accuracy": "accuracy, pixels",
    "cell/f1": "cells found, F1 at IoU 0.5",
    "cell/live_dead_f1": "live/dead F1, all cells",
    "cell/live_dead_accuracy": "live/dead accuracy, found cells",
    "cell/live_dead_auroc": "live/dead AUROC, found cells",
    "field/viability_error_pp": "viability error per field, points",
    "mask/ap": "AP, masks (COCO)",
    "mask/ap50": "AP, masks at IoU 0.5 (COCO)",
    "box/ap": "AP, boxes (COCO)",
    "instance/ap_dsb_50": "TP / (TP + FP + FN) at IoU 0.5",
    "instance/ap_dsb_70": "TP / (TP + FP + FN) at IoU 0.7",
    "instance/ap_dsb_90": "TP / (TP + FP + FN) at IoU 0.9",
    "instance/aji": "aggregated Jaccard index",
    "instance/pq": "panoptic quality",
}


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best net of a run: its checkpoint, and the monitored score; None where no checkpoint was kept."""

    checkpoint: Path | None
    score: float | None


def finish_run(
    trainer: Trainer, task: SegmentationTask, data: CellDataModule, *, folder: Path, fit_score: bool = False
) -> Best:
    """Score the best net on the held-out fields, print the table, write ``results.json`` and the pictures.

    Args:
        trainer: after its fit.
        task: what it fitted; gets the best weights.
        data: what it was fitted on.
        folder: of the run.
        fit_score: choose the score from which cells count on training fields, first, and write it into the checkpoint.
    """
    best = _find_best(trainer, task.monitor)
    if best.checkpoint is not None:
        task.net.load_state_dict(load_net(best.checkpoint)[0].state_dict())
    if fit_score:
        _fit_score(trainer, task, data, best.checkpoint)
    report = InstanceReport(_find_pictures(trainer)) if task.net.spec.kind == "instance" else None
    if report is not None:
        trainer.callbacks.append(report)  # type: ignore[attr-defined]
    trainer.test(task, datamodule=data, verbose=False)
    scores = {name.removeprefix("test/"): float(v) for name, v in trainer.callback_metrics.items() if "test/" in name}
    scores |= task.exact_scores
    # Every process has scored some of the fields.
    fields = min(sum(gather(sum(int(batches) for batches in trainer.num_test_batches))), len(data.held_out))
    rows = {row.name: row for part in gather(task.field_rows) for row in part}
    if report is not None:
        report.gather()
    if not trainer.is_global_zero:
        return best
    baseline = score_baseline(data, min_area_px=task.splitting.min_area_px, fields=fields)
    kind = "test" if "test" in data.views else "validation"
    print_scores(scores, baseline.scores, title=f"{task.net.spec.name} on {fields} {kind} fields")
    _keep_scores(best.checkpoint, scores, "test" if kind == "test" else "val")
    splitting = asdict(task.splitting)
    record = {"monitored": best.score, "fields": fields, "splitting": splitting, "held_out": scores, **baseline.scores}
    _write_results(folder, record)
    draw_confusions(task.confusions, task.net.spec.classes, folder / "confusion.png")
    written = [name for name in ("results.json", "curves.png", "confusion.png") if (folder / name).is_file()]
    if rows:
        table = [replace(rows[name], otsu=baseline.fields.get(name)) for name in data.held_out.names if name in rows]
        written += _write_viability(table, folder)
    if report is not None:
        written += report.write(folder, task, data)
    print(f"results   {folder}: {', '.join(written)}")
    if report is not None and scores.get("instance/true_count"):  # without true cells there is nothing to score by
        print(f"again     {describe_evaluation(folder, task.splitting)}")
    keep_files(trainer, folder)
    return best


def _keep_scores(checkpoint: Path | None, scores: dict[str, float], split: str) -> None:
    """Let a bundle of the best net say of itself what it scored at last: with the fitted threshold, and in fp32."""
    if checkpoint is not None:
        replace_in_record(checkpoint, accuracy={f"{split}/{name}": value for name, value in scores.items()})


def _write_viability(table: list[FieldRow], folder: Path) -> list[str]:
    """Viability field by field, as a table and as a picture; the names of the files."""
    write_field_table(table, folder / "fields.csv")
    draw_field_viability(table, folder / "viability.png")
    return ["fields.csv", "viability.png"]


def _fit_score(trainer: Trainer, task: SegmentationTask, data: CellDataModule, checkpoint: Path | None) -> None:
    """Take over the score threshold that is best on training fields, into the checkpoint too."""
    fitted = fit_threshold(trainer, task, data)
    if fitted is None or fitted.value == 0 or fitted.threshold <= 0:  # a net that gives its cells no score
        text = f"threshold {task.splitting.score_threshold} as before: no cell was found in the training fields"
    else:
        threshold = limit_score(fitted.threshold)
        task.splitting = replace(task.splitting, score_threshold=threshold)
        if checkpoint is not None and trainer.is_global_zero:
            replace_in_record(checkpoint, splitting=asdict(task.splitting))
        text = f"threshold cells count from score {threshold:.3f} up, the best on training fields ({fitted.value:.3f})"
    if trainer.is_global_zero:
        print(text)


@dataclass(frozen=True, kw_only=True)
class BaselineScores:
    """Otsu's scores by kind ("otsu", "otsu_on_true_cells"), and its viability of each field; empty without one."""

    scores: dict[str, dict[str, float]]
    fields: dict[str, Viability]


def score_baseline(data: CellDataModule, *, min_area_px: int, fields: int) -> BaselineScores:
    """Otsu on the first ``fields`` held-out fields, alone and given the true outlines; nothing without a dead stain.

    The baseline sees all channels of the data set, also those that the net was denied, and drops cells by the same
    smallest area as the net.
    """
    channels = data.held_out.channels
    roles = {channel.role for channel in channels}
    if data.kind != "viability" or "dead" not in roles or not roles & {"nuclear", "live"}:
        return BaselineScores(scores={}, fields={})
    baseline = OtsuBaseline(channels, expand_px=data.nucleus_margin_px, min_area_px=min_area_px)
    # One process sees all of the fields: nothing to gather.
    alone, given = (CellMetrics(data.classes, sync_on_compute=False) for _ in range(2))
    found_fields: dict[str, Viability] = {}
    for index in range(min(fields, len(data.held_out))):
        sample = data.held_out.sample(index)
        free, told = baseline(sample.image), baseline.classify(sample.image, sample.label_image)
        score = compute_field_score(
            pred_label_image=free.label_image,
            pred_classes=free.cell_classes,
            true_label_image=sample.label_image,
            true_classes=sample.cell_classes,
            classes=data.classes,
        )
        found_fields[sample.name] = compute_viability(*score.count_viability(data.classes)[2:])
        for metric, found in ((alone, free), (given, told)):
            metric.update(found.label_image, found.cell_classes, found.p_live, sample.label_image, sample.cell_classes)
    return BaselineScores(scores={"otsu": alone.compute(), "otsu_on_true_cells": given.compute()}, fields=found_fields)


def print_scores(scores: dict[str, float], baselines: dict[str, dict[str, float]], *, title: str) -> None:
    """The scores people ask for first, beside the baselines, as a table."""
    table = Table(title=title)
    columns = {"net": scores, **{name.replace("_", " "): values for name, values in baselines.items()}}
    for heading in ("score", *columns):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for name, words in SHOWN.items():
        if any(name in values for values in columns.values()):
            cells = (f"{values[name]:.3f}" if name in values else "" for values in columns.values())
            table.add_row(words, *cells)
    Console().print(table)


def _find_pictures(trainer: Trainer) -> Pictures | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, Pictures)), None)


def _write_results(folder: Path, record: dict[str, Any]) -> None:
    with StagedFiles(folder) as staged:
        staged.path("results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _find_best(trainer: Trainer, monitor: str) -> Best:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and callback.score is not None:
            if trainer.is_global_zero:
                callback.publish()
            trainer.strategy.barrier()
            return Best(checkpoint=callback.path, score=callback.score)
    score = trainer.callback_metrics.get(monitor)
    return Best(checkpoint=None, score=None if score is None else float(score))
