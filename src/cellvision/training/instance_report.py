"""What a run with an instance net leaves: every prediction as a file, curves, and pictures of what was found."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, Subset

from cellvision.bundle import Splitting
from cellvision.data.batching import Fields, collate
from cellvision.data.datamodule import CellDataModule
from cellvision.metrics.cells import has_viability
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.score_threshold import ScoreThreshold
from cellvision.runtime.files.writers import StagedFiles
from cellvision.runtime.pictures.error_sheet import ErrorField, draw_error_sheet
from cellvision.training.gathering import gather
from cellvision.training.instance_fields import choose_cell_classes, fit_to_separate
from cellvision.training.instance_files import name_fields, write_predictions, write_truth
from cellvision.training.pictures import Pictures, draw_rows
from cellvision.training.pr_curves import draw_pr_curves
from cellvision.training.scoring import FieldPrediction
from cellvision.training.task import SegmentationTask
from cellvision.types import IGNORE, Batch

FITTED_FIELDS = 40
SHOWN_FIELDS = 3


class InstanceReport(Callback):
    """Collects the held-out fields while they are scored; ``gather`` and then ``write`` make the files.

    Predictions are kept as compressed masks, and whole fields only of the first three, for cells.png, and of the three
    with the smallest share of cells found, for errors.png.

    Args:
        pictures: of the run, whose marks and zoom cells.png takes over; None for what suits the fields.
    """

    def __init__(self, pictures: Pictures | None = None) -> None:
        self.marks, self.zoom = (None, None) if pictures is None else (pictures.marks, pictures.zoom)
        self.fields: dict[str, InstanceField] = {}
        self.shown: list[FieldPrediction] = []
        self.worst: list[ErrorField] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what was found."""
        assert isinstance(pl_module, SegmentationTask)
        for field in outputs["fields"]:
            self.fields[field.name] = _encode(field, pl_module)
            if len(self.shown) < SHOWN_FIELDS:
                self.shown.append(field)
            self.worst = _choose_worst([*self.worst, _to_error_field(field)])

    def gather(self) -> None:
        """Take over what the other processes of a distributed run have found; every process must take part."""
        self.fields = {name: field for part in gather(self.fields) for name, field in part.items()}
        self.worst = _choose_worst([field for part in gather(self.worst) for field in part])

    def write(self, folder: Path, task: SegmentationTask, data: CellDataModule) -> list[str]:
        """Write predictions.json, truth.json, cells.png, errors.png and pr_curves.png; their names.

        The two JSON files are COCO's, under the ids of the data set where it knows them; see `describe_evaluation`.
        """
        view = data.held_out
        ids = name_fields(view, list(self.fields))
        with StagedFiles(folder) as staged:
            write_truth(staged.path("truth.json"), view, ids)
            write_predictions(staged.path("predictions.json"), self.fields, ids)
        score = task.splitting.score_threshold
        cells = draw_rows(
            task.net.spec,
            self.shown,
            channels=data.channels,
            pixel_size_um=data.pixel_size_um,
            note=f"score >= {score:.3f}",
            marks=self.marks,
            zoom=self.zoom,
        )
        Image.fromarray(cells).save(folder / "cells.png")
        Image.fromarray(draw_error_sheet(self.worst, channels=data.channels)).save(folder / "errors.png")
        names = ["predictions.json", "truth.json", "cells.png", "errors.png"]
        if curves := task.curves:
            title = f"{task.net.spec.name}, IoU 0.5 (dot: score >= {score:.3f})"
            draw_pr_curves(curves, folder / "pr_curves.png", title=title)
            names.append("pr_curves.png")
        return names


def describe_evaluation(folder: Path, splitting: Splitting) -> str:
    """The command that scores the files of `InstanceReport.write` as the run did."""
    files = [shlex.quote(str(folder / name)) for name in ("predictions.json", "truth.json")]
    settings = f"--score-threshold {splitting.score_threshold!r} --min-visible {splitting.min_visible!r}"
    return f"cellvision evaluate {files[0]} --truth {files[1]} {settings} --min-area-px {splitting.min_area_px}"


def fit_threshold(trainer: Trainer, task: SegmentationTask, data: CellDataModule) -> ScoreThreshold | None:
    """The score from which cells count, by up to 40 whole training fields: held-out fields take no part.

    The fields are spread evenly over the training fields, and their cells painted as they are delivered, of scores in
    single precision: the threshold is for a bundle, and a bundle computes so whatever the training did. None where
    nothing can be learned from them: no cell was found, or there is none.
    """
    view = data.views["train"]
    chosen = np.unique(np.linspace(0, len(view) - 1, FITTED_FIELDS).round().astype(np.int64)).tolist()
    loader = DataLoader(
        Subset(Fields(view, channels=data.channel_positions), chosen),
        batch_size=1,
        collate_fn=partial(collate, with_distance=False),
    )
    device = trainer.strategy.root_device
    task.to(device).eval()
    found, truths = [], []
    with torch.no_grad():
        for batch in loader:
            # Encoded at once: a decoded field is a thousand times as large.
            for field in task.predict_fields(batch.to(device)):
                found.append(_encode(field, task))
                truths.append(InstanceField.from_label_image(field.true_label_image, field.true_cell_classes))
    fitted: ScoreThreshold | None = trainer.strategy.broadcast(fit_to_separate(found, truths, task.splitting))
    return fitted


def _encode(field: FieldPrediction, task: SegmentationTask) -> InstanceField:
    detections, classes = field.detections, task.net.spec.classes
    assert detections is not None
    tells = has_viability(classes)
    return InstanceField.from_detections(
        detections,
        shape=field.cells.shape,
        mask_threshold=task.splitting.foreground_threshold,
        cell_class=choose_cell_classes(detections, classes, live_threshold=task.live_threshold) if tells else None,
    )


def _choose_worst(fields: Sequence[ErrorField]) -> list[ErrorField]:
    """The fields, each once, with the smallest share of cells found, the worst first."""
    by_name = {field.name: field for field in fields}  # a distributed sampler repeats some
    return sorted(by_name.values(), key=lambda field: field.errors.found_share)[:SHOWN_FIELDS]


def _to_error_field(field: FieldPrediction) -> ErrorField:
    assert field.cells.label_image is not None
    return ErrorField(
        name=field.name,
        image=field.image,
        pred_label_image=field.cells.label_image,
        true_label_image=field.true_label_image,
        ignore=field.true_class_map == IGNORE,
    )
