"""What a run with an instance net leaves: every prediction as a file, curves, and a picture of what went wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, Subset

from cellvision.bundle import Channel
from cellvision.data.batching import Fields, collate
from cellvision.data.coco import write_coco
from cellvision.data.datamodule import CellDataModule
from cellvision.metrics.instance_field import InstanceField
from cellvision.metrics.score_threshold import ScoreThreshold, fit_score_threshold
from cellvision.runtime.error_sheet import ErrorField, draw_error_sheet
from cellvision.training.instance_fields import to_found_field
from cellvision.training.pr_curves import draw_pr_curves
from cellvision.training.scoring import FieldPrediction
from cellvision.training.task import SegmentationTask
from cellvision.types import IGNORE, Batch

FITTED_FIELDS = 40
SHOWN_FIELDS = 3


class InstanceReport(Callback):
    """Collects the held-out fields while they are scored; ``write`` makes the files.

    Predictions are kept as compressed masks, and whole fields only of the first three.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fields: list[InstanceField] = []
        self.shown: list[ErrorField] = []

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
            self.names.append(field.name)
            self.fields.append(_encode(field, pl_module))
            if len(self.shown) < SHOWN_FIELDS:
                self.shown.append(_to_error_field(field))

    def write(self, folder: Path, task: SegmentationTask, data: CellDataModule) -> list[str]:
        """Write predictions.json, truth.json, errors.png and pr_curves.png; their names.

        The two JSON files are COCO's: ``cellvision evaluate predictions.json --truth truth.json`` gives every score.
        """
        samples = (sample for i in range(len(self.names)) if (sample := data.held_out.sample(i)))
        write_coco(folder / "truth.json", samples, classes=data.classes)
        (folder / "predictions.json").write_text(json.dumps(self._list_predictions()), encoding="utf-8")
        channels: tuple[Channel, ...] = data.channels
        Image.fromarray(draw_error_sheet(self.shown, channels=channels)).save(folder / "errors.png")
        names = ["predictions.json", "truth.json", "errors.png"]
        if curves := task.curves:
            draw_pr_curves(curves, folder / "pr_curves.png", title=f"{task.net.spec.name}, IoU 0.5")
            names.append("pr_curves.png")
        return names

    def _list_predictions(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for image_id, field in enumerate(self.fields, start=1):
            assert field.score is not None
            for i, rle in enumerate(field.rles):
                left, top, right, bottom = field.boxes[i].tolist()
                row = {
                    "image_id": image_id,
                    "category_id": int(field.class_id[i]),
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": dict(rle),
                    "score": float(field.score[i]),
                }
                rows.append(row if field.box_score is None else {**row, "box_score": float(field.box_score[i])})
        return rows


def fit_threshold(trainer: Trainer, task: SegmentationTask, data: CellDataModule) -> ScoreThreshold | None:
    """The score from which cells count, by the first 40 whole training fields: held-out fields take no part.

    None where nothing can be learned from them: no cell was found, or there is none.
    """
    view = data.views["train"]
    fields = Subset(Fields(view, channels=data.channel_positions), range(min(FITTED_FIELDS, len(view))))
    loader = DataLoader(fields, batch_size=1, collate_fn=collate)
    device = trainer.strategy.root_device
    task.to(device).eval()
    with torch.no_grad(), trainer.strategy.precision_plugin.forward_context():
        found = [field for batch in loader for field in task.predict_fields(batch.to(device))]
    truths = [InstanceField.from_label_image(field.true_label_image, field.true_cell_classes) for field in found]
    preds = [_encode(field, task) for field in found]
    usable = any(map(len, preds)) and any(not truth.ignored.all() for truth in truths)
    fitted: ScoreThreshold | None = trainer.strategy.broadcast(fit_score_threshold(preds, truths) if usable else None)
    return fitted


def _encode(field: FieldPrediction, task: SegmentationTask) -> InstanceField:
    assert field.detections is not None
    return to_found_field(field.detections, shape=field.cells.shape, mask_threshold=task.splitting.foreground_threshold)


def _to_error_field(field: FieldPrediction) -> ErrorField:
    assert field.cells.label_image is not None
    return ErrorField(
        name=field.name,
        image=field.image,
        pred_label_image=field.cells.label_image,
        true_label_image=field.true_label_image,
        ignore=field.true_class_map == IGNORE,
    )
