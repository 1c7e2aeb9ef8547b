"""From a net's outputs to scores; the runtime's own code splits the cells, so what is scored is what ships."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from cellvision.bundle import Splitting
from cellvision.metrics.cells import compute_field_score, has_viability
from cellvision.metrics.instance_state import InstanceMetrics
from cellvision.metrics.instances.coco_ap import KINDS, PrCurve
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.state import CellMetrics, PixelMetrics
from cellvision.models.base import NetSpec
from cellvision.runtime.cells import Cells, build_cells, to_class_map
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import Detections, read_detections
from cellvision.runtime.maps.splitting import measure_cells, split_cells
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
        probabilities: (K, H, W) float32; 0 and 1 where the net finds cells and says nothing of pixels.
        cells: predicted, with their label image.
        detections: all that an instance net found, below any threshold too; None for other nets.
    """

    name: str
    image: np.ndarray
    true_class_map: np.ndarray
    true_label_image: np.ndarray
    true_cell_classes: np.ndarray
    probabilities: np.ndarray
    cells: Cells
    detections: Detections | None = None


def choose_monitor(spec: NetSpec) -> str:
    """The validation score that tells which net of a run is best."""
    if spec.kind == "instance":
        return "val/mask/ap"
    return "val/cell/live_dead_f1" if has_viability(spec.classes) else "val/pixel/miou"


def choose_splitting(spec: NetSpec) -> str:
    """The best way to separate cells that the net's outputs allow."""
    if spec.kind == "instance":
        return "instances"
    return "distance" if "distance" in spec.outputs else "components"


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
    """The scores of a net over many fields: per pixel, per cell, per field, and of cells as instances.

    "pixel/auroc_.." are only scored of nets that give each pixel a probability: of the 0 and 1 of found cells they
    would say nothing new.

    "instance/.." is scored on the separate cells, as they are delivered; "mask/.." and "box/..", of nets that find
    cells themselves, on all they found, however unsure and overlapping, because average precision goes through all
    thresholds.

    Args:
        spec: of the net.
        mask_threshold: smallest probability of a found cell's pixel.
    """

    def __init__(self, spec: NetSpec, *, mask_threshold: float) -> None:
        super().__init__()
        self.pixel, self.cell = PixelMetrics(spec.classes), CellMetrics(spec.classes)
        self.separate = InstanceMetrics(spec.classes, score_threshold=0.0)
        self.found = InstanceMetrics(spec.classes) if spec.kind == "instance" else None
        self.mask_threshold = mask_threshold
        self.has_probabilities = "probabilities" in spec.outputs

    def update(self, field: FieldPrediction) -> None:
        """Count a field."""
        cells = field.cells
        assert cells.label_image is not None
        self.pixel.update(field.probabilities[None], field.true_class_map[None])
        self.cell.update(
            cells.label_image, cells.class_id, cells.p_live, field.true_label_image, field.true_cell_classes
        )
        truth = InstanceField.from_label_image(field.true_label_image, field.true_cell_classes)
        self.separate.update(InstanceField.from_cells(cells), truth, field.name)
        if self.found is not None and field.detections is not None:
            found = InstanceField.from_detections(
                field.detections, shape=cells.shape, mask_threshold=self.mask_threshold
            )
            self.found.update(found, truth, field.name)

    def compute(self) -> dict[str, float]:
        """Flat scores so far, gathered over all processes."""
        found = {} if self.found is None else self.found.compute()
        kept = {name: value for name, value in self.separate.compute().items() if name.startswith("instance/")}
        ranked = {name: value for name, value in found.items() if name.startswith(("mask/", "box/"))}
        pixel = self.pixel.compute()
        if not self.has_probabilities:
            pixel = {name: value for name, value in pixel.items() if not name.startswith("pixel/auroc_")}
        return {**pixel, **self.cell.compute(), **kept, **ranked}

    def confusions(self) -> dict[str, np.ndarray]:
        """Confusion matrices (K, K) int64 over all processes: true classes in rows, predicted in columns."""
        with self.pixel.sync_context(), self.cell.sync_context():
            return {"pixel": self.pixel.confusion.cpu().numpy(), "cell": self.cell.confusion.cpu().numpy()}

    def curves(self, score_threshold: float) -> dict[str, PrCurve]:
        """Curves at IoU 0.5 by "mask" or "box" and class, over all processes; empty for other nets.

        Args:
            score_threshold: where to mark those of masks; boxes compete by another score.
        """
        if self.found is None:
            return {}
        with self.found.sync_context():
            overlaps = self.found.to_overlaps()
        counted = overlaps.select(np.flatnonzero(overlaps.score >= score_threshold), np.arange(len(overlaps.ignored)))
        at_half = self.found.compute_coco("mask", counted).recall[0, :, 0, -1]
        chosen = {"mask": dict(zip(self.found.classes[1:], at_half.tolist(), strict=True)), "box": {}}
        return {
            f"{kind}, {name}": PrCurve(recall=recall, precision=precision, chosen_recall=chosen[kind].get(name))
            for kind in KINDS
            for name, (recall, precision) in self.found.compute_coco(kind, overlaps).to_curves().items()
        }

    def reset(self) -> None:
        """Forget all fields."""
        for metric in (self.pixel, self.cell, self.separate, self.found):
            if metric is not None:
                metric.reset()


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
        outputs: of the net, see ``SegNet.forward``; float32.
        splitting: how cells are separated.
        live_threshold: a cell is live where P(live) reaches it.
    """
    image = batch.images[at].cpu().numpy()
    detections = None
    if spec.kind == "instance":
        detections = read_detections(outputs, at)
        cells = _take_detections(spec, detections, image, splitting, live_threshold)
        probabilities = outputs["probabilities"][at] if "probabilities" in outputs else _to_probabilities(cells)
    else:
        probabilities = outputs["probabilities"][at]
        distance = outputs["distance"][at, 0] if "distance" in spec.outputs else None
        label_image = split_cells(probabilities, distance, splitting=splitting)
        cells = _build(spec, label_image, image, probabilities, live_threshold)
    return FieldPrediction(
        name=batch.names[at],
        image=image,
        true_class_map=batch.targets.class_map[at].cpu().numpy(),
        true_label_image=batch.targets.label_image[at].cpu().numpy(),
        true_cell_classes=batch.targets.cell_classes[at].cpu().numpy(),
        probabilities=probabilities,
        cells=cells,
        detections=detections,
    )


def repaint_field(
    spec: NetSpec, field: FieldPrediction, *, splitting: Splitting, live_threshold: float
) -> FieldPrediction:
    """The field with its detections made into cells by another splitting.

    Args:
        spec: of the net, which finds cells.
        field: with its detections.
        splitting: how cells are separated.
        live_threshold: a cell is live where P(live) reaches it.
    """
    assert field.detections is not None
    return replace(field, cells=_take_detections(spec, field.detections, field.image, splitting, live_threshold))


def _take_detections(
    spec: NetSpec, detections: Detections, image: np.ndarray, splitting: Splitting, live_threshold: float
) -> Cells:
    return build_detected_cells(
        detections,
        image,
        splitting=splitting,
        classes=spec.classes,
        channels=_name_channels(image),
        live_threshold=live_threshold if has_viability(spec.classes) else None,
    )


def _to_probabilities(cells: Cells) -> np.ndarray:
    """(K, H, W) float32, 1 for the class of each pixel: what a net that finds cells says of pixels."""
    return _to_one_hot(to_class_map(cells), len(cells.classes))


def build_true_cells(spec: NetSpec, field: FieldPrediction) -> Cells:
    """The truth of a field in the form of a prediction, P(true class) = 1; cells of class IGNORE are left out."""
    known = np.where(field.true_class_map == IGNORE, 0, field.true_class_map)
    probabilities = _to_one_hot(known, len(spec.classes))
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
        channels=_name_channels(image),
        kind=spec.kind,
        live_threshold=live_threshold,
        shape=label_image.shape,
        label_image=label_image,
        pixel_size_um=None,
    )


def _name_channels(image: np.ndarray) -> tuple[str, ...]:
    return tuple(f"channel{i}" for i in range(len(image)))


def _to_one_hot(class_map: np.ndarray, class_count: int) -> np.ndarray:
    return np.eye(class_count, dtype=np.float32)[class_map].transpose(2, 0, 1)
