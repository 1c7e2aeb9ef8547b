"""The detections of a net beside those of its bundle, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from cellvision.bundle import Detecting, Manifest
from cellvision.errors import ExportError, explain
from cellvision.export.onnx import to_inference
from cellvision.export.parity.case import PIXELS_TOLERANCE, ParityCase
from cellvision.models.base import SegNet
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import Detections, read_detections
from cellvision.runtime.graphs.detection_session import DetectionSession

SAME_BOX_PX = 1.0
"""Boxes further apart are not the same detection; rounding moves a box by 1e-4 px, the next detection is px away."""

FAR_PX = 1e6

COMPARED = ("boxes", "scores", "mask_scores", "masks")


Run = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


def check_forward(net: SegNet, run: Run, batch: np.ndarray, *, detecting: Detecting, tolerance: float) -> bool:
    """Raise ExportError where ``net.forward``, which was scored in training, finds other cells than the graph's work.

    Of both the best boxes are looked at, as many as both can have.

    Returns:
        Whether there was any box to look at.

    Args:
        net: what was exported.
        run: see `compare_detections`.
        batch: (B, C, H, W) raw counts. Small, since ``forward`` draws masks for all boxes.
        detecting: of the bundle.
        tolerance: largest absolute difference of boxes (px), scores and masks that counts as agreement.
    """
    assert net.detecting is not None
    images = torch.from_numpy(batch)
    with torch.inference_mode():
        scored = {name: values.numpy() for name, values in to_inference(net)(images).items()}
    exported = {name: values.numpy() for name, values in run(images).items()}
    most = min(detecting.max_cells, net.detecting.max_cells)
    unmatched, total, largest = 0, 0, 0.0 if np.isfinite(scored["scores"]).all() else np.nan
    for at in range(len(batch)):
        of_net, of_graph = (_take_best(read_detections(outputs, at), detecting, most) for outputs in (scored, exported))
        pair = pair_detections(of_net, of_graph)
        unmatched += len(of_net) + len(of_graph) - 2 * len(pair[0])
        total += len(of_net) + len(of_graph)
        known = [name for name in COMPARED if getattr(of_net, name) is not None]
        largest = float(np.max([largest, *(_difference(name, *pair).max(initial=0.0) for name in known)]))
    if not (largest <= tolerance and unmatched <= PIXELS_TOLERANCE * total):  # a NaN does not pass
        got = f"forward and export differ by up to {largest:.2g}, with {unmatched} of {total} boxes unmatched"
        need = f"at most {tolerance:g} and the same boxes"
        raise ExportError(explain(got=got, need=need, hint="look at what the net's forward does and its part does not"))
    return total > 0


def _take_best(found: Detections, detecting: Detecting, most: int) -> Detections:
    order = np.argsort(-found.scores, kind="stable")[:most]
    return found.take(order[found.scores[order] >= detecting.min_score])


def compare_detections(
    run: Run,
    session: DetectionSession,
    batch: np.ndarray,
    image_dtype: str,
    *,
    input_dtype: str,
) -> ParityCase:
    """One batch through both.

    Detections with equal scores may come in another order, so each is compared with the one whose box is nearest.

    Args:
        run: the net in PyTorch, from `open_eager` with the bundle's ``detecting``. On its own it would draw masks for
            boxes below the bundle's min_score too: most of them, and most of the time.
        session: of its bundle.
        batch: (B, C, H, W) raw counts of ``image_dtype``.
        image_dtype: of the image.
        input_dtype: of the graph.
    """
    outputs = {name: values.numpy() for name, values in run(torch.from_numpy(batch)).items()}
    of_net = [read_detections(outputs, at) for at in range(len(batch))]
    of_graph = session.run_batch(batch.astype(input_dtype))
    pairs = list(zip(of_net, of_graph, strict=True))
    rows = [pair_detections(one, other) for one, other in pairs]
    names = [name for name in session.manifest.outputs if name not in ("classes", "valid")]
    differences = {name: np.concatenate([_difference(name, *row) for row in rows]) for name in names}
    matched, total = sum(len(row[0]) for row in rows), max(1, sum(len(one) for one in of_net))
    other_class = sum(int((one.class_id != other.class_id).sum()) for one, other in rows)
    labels = [
        [_label(found, image, session.manifest) for found in pair] for pair, image in zip(pairs, batch, strict=True)
    ]
    return ParityCase(
        height=batch.shape[2],
        width=batch.shape[3],
        batch=len(batch),
        image_dtype=image_dtype,
        max_difference={name: float(values.max(initial=0.0)) for name, values in differences.items()},
        mean_difference={name: float(values.mean()) if values.size else 0.0 for name, values in differences.items()},
        class_difference=other_class / max(1, matched),
        cells_net=sum(int(one.max(initial=0)) for one, _ in labels),
        cells_graph=sum(int(other.max(initial=0)) for _, other in labels),
        cell_pixels=sum(int(((one > 0) | (other > 0)).sum()) for one, other in labels),
        other_pixels=sum(int(((one > 0) != (other > 0)).sum()) for one, other in labels),
        unmatched=(sum(len(one) + len(other) for one, other in pairs) - 2 * matched) / (2 * total),
    )


def pair_detections(one: Detections, other: Detections) -> tuple[Detections, Detections]:
    """The rows of both that belong together: of one class, and within SAME_BOX_PX in every edge.

    Example:
        >>> import numpy as np
        >>> one = Detections(boxes=np.array([[0, 0, 9, 9]], np.float32), scores=np.array([0.9], np.float32),
        ...     mask_scores=None, class_id=np.array([1]), class_scores=np.array([[0.9]], np.float32),
        ...     masks=np.ones((1, 28, 28), np.float32))
        >>> [len(found) for found in pair_detections(one, one)]
        [1, 1]
    """
    distance = np.full((len(one), len(other)), FAR_PX, np.float32)
    for row, (box, kind) in enumerate(zip(one.boxes, one.class_id, strict=True)):
        of_class = other.class_id == kind
        distance[row, of_class] = np.abs(other.boxes[of_class] - box).max(axis=1, initial=0.0).clip(0, FAR_PX)
    rows, columns = linear_sum_assignment(distance)
    same = distance[rows, columns] <= SAME_BOX_PX
    return one.take(rows[same]), other.take(columns[same])


def _difference(name: str, one: Detections, other: Detections) -> np.ndarray:
    first, second = getattr(one, name), getattr(other, name)
    return np.abs(first.astype(np.float64) - second).ravel()


def _label(found: Detections, image: np.ndarray, manifest: Manifest) -> np.ndarray:
    channels = tuple(channel.name for channel in manifest.channels)
    cells = build_detected_cells(
        found, image, splitting=manifest.splitting, classes=manifest.classes, channels=channels
    )
    assert cells.label_image is not None
    return cells.label_image
