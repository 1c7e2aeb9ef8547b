"""From a net's outputs to scores; the runtime's own code splits the cells, so what is scored is what ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from cellvision.bundle import Splitting
from cellvision.metrics.cells import compute_field_score
from cellvision.metrics.state import CellMetrics, PixelMetrics
from cellvision.models.base import NetSpec
from cellvision.runtime.cells import Cells, build_cells
from cellvision.runtime.instances import measure_cells, split_cells
from cellvision.runtime.viability import compute_viability
from cellvision.training.field_report import FieldRow
from cellvision.types import IGNORE, Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class FieldPrediction:
    """One field, its truth and what the net made of it.

    Attributes:
        name: of the sample.
        image: (C, H, W) float32, raw counts.
        true_class_map: (H, W) int64, 0..K-1 or IGNORE.
        true_label_image: (H, W) int32.
        true_cell_classes: (N,) int64.
        probabilities: (K, H, W) float32.
        cells: predicted, with their label image.
    """

    name: str
    image: np.ndarray
    true_class_map: np.ndarray
    true_label_image: np.ndarray
    true_cell_classes: np.ndarray
    probabilities: np.ndarray
    cells: Cells


def count_field(field: FieldPrediction) -> FieldRow:
    """The field's viability, predicted and annotated; cells of unknown class, and what lies on them, do not count."""
    cells = field.cells
    assert cells.label_image is not None
    score = compute_field_score(
        pred_label_image=cells.label_image,
        pred_classes=cells.class_id,
        true_label_image=field.true_label_image,
        true_classes=field.true_cell_classes,
        classes=cells.classes,
    )
    true_live, true_dead, live, dead = score.count_viability(cells.classes)
    return FieldRow(
        name=field.name, predicted=compute_viability(live, dead), true=compute_viability(true_live, true_dead)
    )


class Scores(nn.Module):
    """The scores of a net over many fields: per pixel, per cell, per field."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.pixel, self.cell = PixelMetrics(spec.classes), CellMetrics(spec.classes)

    def update(self, field: FieldPrediction) -> None:
        """Count a field."""
        cells = field.cells
        assert cells.label_image is not None
        self.pixel.update(field.probabilities[None], field.true_class_map[None])
        self.cell.update(
            cells.label_image, cells.class_id, cells.p_live, field.true_label_image, field.true_cell_classes
        )

    def compute(self) -> dict[str, float]:
        """Flat scores so far, gathered over all processes."""
        return {**self.pixel.compute(), **self.cell.compute()}

    def confusions(self) -> dict[str, np.ndarray]:
        """Confusion matrices (K, K) int64 by what is counted: true classes in rows, predicted in columns."""
        return {"pixel": self.pixel.confusion.cpu().numpy(), "cell": self.cell.confusion.cpu().numpy()}

    def reset(self) -> None:
        """Forget all fields."""
        self.pixel.reset()
        self.cell.reset()


def predict_field(
    spec: NetSpec,
    batch: Batch,
    at: int,
    outputs: Mapping[str, np.ndarray],
    *,
    splitting: Splitting,
    live_threshold: float,
) -> FieldPrediction:
    """Field ``at`` of a batch, split into cells and classified as the runtime does.

    Args:
        spec: of the net.
        batch: what went in.
        at: position in the batch.
        outputs: of the net: "probabilities" (B, K, H, W) and, if it has one, "distance" (B, 1, H, W), float32.
        splitting: how cells are separated.
        live_threshold: a cell is live where P(live) reaches it.
    """
    probabilities = outputs["probabilities"][at]
    distance = outputs["distance"][at, 0] if "distance" in spec.outputs else None
    label_image = split_cells(probabilities, distance, splitting=splitting)
    image = batch.images[at].cpu().numpy()
    return FieldPrediction(
        name=batch.names[at],
        image=image,
        true_class_map=batch.targets.class_map[at].cpu().numpy(),
        true_label_image=batch.targets.label_image[at].cpu().numpy(),
        true_cell_classes=batch.targets.cell_classes[at].cpu().numpy(),
        probabilities=probabilities,
        cells=_build(spec, label_image, image, probabilities, live_threshold),
    )


def build_true_cells(spec: NetSpec, field: FieldPrediction) -> Cells:
    """The truth of a field in the form of a prediction, P(true class) = 1; cells of class IGNORE are left out."""
    known = np.where(field.true_class_map == IGNORE, 0, field.true_class_map)
    probabilities = np.eye(len(spec.classes), dtype=np.float32)[known].transpose(2, 0, 1)
    label_image = np.where(known > 0, field.true_label_image, 0)
    _, dense = np.unique(np.append(0, label_image), return_inverse=True)
    dense_image = dense[1:].reshape(label_image.shape).astype(np.int32)
    return _build(spec, dense_image, field.image, probabilities, 0.5)


def _build(
    spec: NetSpec, label_image: np.ndarray, image: np.ndarray, probabilities: np.ndarray, live_threshold: float
) -> Cells:
    return build_cells(
        measure_cells(label_image, image, probabilities),
        classes=spec.classes,
        channels=tuple(f"channel{i}" for i in range(len(image))),
        kind=spec.kind,
        live_threshold=live_threshold,
        shape=label_image.shape,
        label_image=label_image,
        pixel_size_um=None,
    )
