"""Truth beside prediction, drawn after every validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from cellvision.bundle import Channel
from cellvision.runtime.overlay import draw_overlay
from cellvision.training.scoring import FieldPrediction, build_true_cells
from cellvision.training.task import SegmentationTask
from cellvision.types import Batch


class Pictures(Callback):
    """Saves ``epoch_000.png`` and so on: one row per field, truth left, prediction right; to TensorBoard as well.

    Args:
        folder: where the pictures go.
        fields: how many validation fields to show, the first ones.
        every: draw after every so many epochs.
    """

    def __init__(self, *, folder: str | Path, fields: int = 2, every: int = 1) -> None:
        self.folder, self.fields, self.every = Path(folder), fields, every
        self._shown: list[FieldPrediction] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first fields."""
        self._shown += outputs["fields"][: self.fields - len(self._shown)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        shown, self._shown = self._shown, []
        if not trainer.is_global_zero or not shown or trainer.current_epoch % self.every:
            return
        assert isinstance(pl_module, SegmentationTask)
        channels = () if pl_module.record is None else pl_module.record.channels
        picture = draw_rows(pl_module, shown, channels)
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.folder / f"epoch_{trainer.current_epoch:03d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/fields", picture, trainer.current_epoch, dataformats="HWC")


def draw_rows(task: SegmentationTask, fields: list[FieldPrediction], channels: tuple[Channel, ...]) -> np.ndarray:
    """(h, w, 3) uint8: truth left, prediction right, one row per field, padded with black to one width."""
    rows = []
    for field in fields:
        pair = [build_true_cells(task.net.spec, field), field.cells]
        rows.append(_stack([draw_overlay(field.image, cells, channels=channels) for cells in pair], axis=1))
    return _stack(rows, axis=0)


def _stack(pictures: list[np.ndarray], *, axis: int) -> np.ndarray:
    """Pictures side by side (axis 1) or one below the other (axis 0), the smaller ones padded with black."""
    other = 1 - axis
    size = max(picture.shape[other] for picture in pictures)
    padded = []
    for picture in pictures:
        missing = [(0, 0), (0, 0), (0, 0)]
        missing[other] = (0, size - picture.shape[other])
        padded.append(np.pad(picture, missing))
    return np.concatenate(padded, axis=axis)
