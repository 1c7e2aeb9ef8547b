"""Truth beside prediction, drawn after every validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from cellvision.bundle import Channel, Splitting
from cellvision.errors import ConfigError, check_choice, explain
from cellvision.metrics.instances.field import InstanceField
from cellvision.models.base import NetSpec
from cellvision.runtime.cells import Cells
from cellvision.runtime.pictures.marks import Marks, add_caption, stack_pictures
from cellvision.runtime.pictures.overlay import draw_overlay
from cellvision.training.instance_fields import fit_to_separate, limit_score
from cellvision.training.scoring import FieldPrediction, build_true_cells, repaint_field
from cellvision.training.task import SegmentationTask
from cellvision.types import IGNORE, Batch

MARKS = ("boxes", "numbers", "class_names", "scores", "scale_bar")
_LARGEST_ZOOM = 4
_SHORT_SIDE_PX, _MARKED_SIDE_PX = 520, 2000
_SCORE_PX = (30, 14)  # width and height of a written score
_GAP_PX = 6


class Pictures(Callback):
    """Saves ``epoch_001.png`` and so on: one row per field, truth left, prediction right; to TensorBoard as well.

    Of a net that finds cells those are shown whose score is at least the one that suits these very fields best, for
    scores of a young net are low and one threshold would show nothing for many epochs; the caption says which. The
    scores of the validation count cells from ``splitting.score_threshold`` up.

    Args:
        folder: where the pictures go.
        fields: how many validation fields to show, the first ones.
        every: draw after every so many epochs, or the next one that is validated.
        marks: what to write at the cells, of MARKS; None writes scores where they fit into the cells, and a scale bar
            where the pixel size is known.
        zoom: whole number by which the pictures are enlarged; None enlarges small fields, up to four times.

    Raises:
        ConfigError: an unknown mark; when training begins, a scale bar where the data have no pixel size.
    """

    def __init__(
        self,
        *,
        folder: str | Path,
        fields: int = 2,
        every: int = 1,
        marks: Sequence[str] | None = None,
        zoom: int | None = None,
    ) -> None:
        for name in marks or ():
            check_choice("callbacks.pictures.marks", name, MARKS)
        self.folder, self.fields, self.every = Path(folder), fields, every
        self.marks = None if marks is None else Marks(**dict.fromkeys(marks, True))
        self.zoom = Marks(zoom=zoom).zoom
        self._shown: list[FieldPrediction] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a scale bar that could not be drawn, before an epoch is spent."""
        assert isinstance(pl_module, SegmentationTask)
        known = pl_module.record is not None and pl_module.record.pixel_size_um is not None
        if self.marks is not None and self.marks.scale_bar and not known:
            got = "callbacks.pictures.marks with scale_bar and images without a pixel size"
            raise ConfigError(explain(got=got, need="the size of a pixel", hint="callbacks.pictures.marks=null"))

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
        if not trainer.is_global_zero or not shown or not self._is_due(trainer):
            return
        assert isinstance(pl_module, SegmentationTask)
        picture = self._draw(pl_module, shown)
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(self.folder / f"epoch_{trainer.current_epoch + 1:03d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/fields", picture, trainer.current_epoch, dataformats="HWC")

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether a multiple of ``every`` epochs has been reached since the validation before."""
        epochs = trainer.current_epoch + 1
        before = epochs - (trainer.check_val_every_n_epoch or 1)
        return epochs // self.every > before // self.every

    def _draw(self, task: SegmentationTask, shown: list[FieldPrediction]) -> np.ndarray:
        spec, record, note = task.net.spec, task.record, ""
        if spec.kind == "instance":
            score = choose_shown_score(shown, task.splitting)
            splitting = replace(task.splitting, score_threshold=score)
            shown = [
                repaint_field(spec, field, splitting=splitting, live_threshold=task.live_threshold) for field in shown
            ]
            note = f"score >= {score:.3f}, chosen for this picture"
        channels = () if record is None else record.channels
        pixel_size_um = None if record is None else record.pixel_size_um
        return draw_rows(
            spec, shown, channels=channels, note=note, marks=self.marks, zoom=self.zoom, pixel_size_um=pixel_size_um
        )


def choose_shown_score(fields: Sequence[FieldPrediction], splitting: Splitting) -> float:
    """The score from which the cells of a picture agree best with the truth that is beside them.

    Where none of any score agrees with a true cell, as many cells are shown as there should be.

    Args:
        fields: with their detections.
        splitting: how cells are separated.
    """
    found = [_encode(field, splitting) for field in fields]
    truths = [InstanceField.from_label_image(field.true_label_image, field.true_cell_classes) for field in fields]
    fitted = fit_to_separate(found, truths, splitting)
    if fitted is not None and fitted.value > 0:
        return limit_score(fitted.threshold)
    ranked = np.sort(np.concatenate([np.zeros(0), *(field.score for field in found if field.score is not None)]))[::-1]
    wanted = max(1, sum(int((~truth.ignored).sum()) for truth in truths))
    return limit_score(float(ranked[min(wanted, len(ranked)) - 1])) if len(ranked) else splitting.score_threshold


def _encode(field: FieldPrediction, splitting: Splitting) -> InstanceField:
    assert field.detections is not None
    return InstanceField.from_detections(
        field.detections, shape=field.cells.shape, mask_threshold=splitting.foreground_threshold
    )


def draw_rows(
    spec: NetSpec,
    fields: Sequence[FieldPrediction],
    *,
    channels: tuple[Channel, ...],
    note: str = "",
    marks: Marks | None = None,
    zoom: int | None = None,
    pixel_size_um: float | None = None,
) -> np.ndarray:
    """(h, w, 3) uint8: truth left, prediction right, one row per field, padded with black to one width.

    True cells that do not count, such as crowds and those of unknown class, are grey.

    Args:
        spec: of the net.
        fields: one or more.
        channels: of the images, in order.
        note: written above each prediction.
        marks: what to write at the cells; None writes scores where they fit, and a scale bar where it has a length.
        zoom: whole number by which the pictures are enlarged; None enlarges small fields.
        pixel_size_um: of the images, or None where unknown.
    """
    rows = []
    for field in fields:
        chosen = _choose_marks(field.cells, marks, zoom=zoom, pixel_size_um=pixel_size_um)
        unknown = np.where(field.true_class_map == IGNORE, field.true_label_image, 0)
        sides = (
            ("truth", field.name, build_true_cells(spec, field), unknown),
            ("prediction", note, field.cells, None),
        )
        pictures = []
        for side, words, cells, ignored in sides:
            cells = replace(cells, pixel_size_um=pixel_size_um)
            picture = draw_overlay(field.image, cells, channels=channels, marks=chosen, ignored=ignored)
            picture = np.pad(picture, ((0, 0), (0, _GAP_PX), (0, 0)))
            pictures.append(add_caption(picture, (side, words)))
        rows.append(stack_pictures(pictures, axis=1))
    return stack_pictures(rows, axis=0)


def _choose_marks(cells: Cells, marks: Marks | None, *, zoom: int | None, pixel_size_um: float | None) -> Marks:
    """Marks with their zoom, which must be the same for truth and prediction."""
    has_text = marks is not None and (marks.numbers or marks.class_names or marks.scores)
    side_px = _MARKED_SIDE_PX if has_text else _SHORT_SIDE_PX
    zoom = zoom or int(np.clip(side_px // max(cells.shape), 1, _LARGEST_ZOOM))
    if marks is not None:
        return replace(marks, zoom=zoom)
    height, width = np.median(cells.bbox[:, 2:] - cells.bbox[:, :2], axis=0) * zoom if len(cells) else (0, 0)
    fits = bool(width >= _SCORE_PX[0] and height >= _SCORE_PX[1])
    return Marks(scores=fits, scale_bar=pixel_size_um is not None, zoom=zoom)
