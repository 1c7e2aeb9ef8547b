"""What the net and a bundle of it find in a field with true cells, and how far the two agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cellvision.bundle import Detecting, Manifest, Splitting, load_manifest
from cellvision.data.batching import collate, to_field
from cellvision.errors import ExportError, explain
from cellvision.export.onnx import open_eager
from cellvision.export.parity.detections import pair_detections
from cellvision.metrics.accuracy import Found
from cellvision.metrics.cells import FieldScore, compute_cell_scores, compute_field_score, has_viability, sum_fields
from cellvision.metrics.cost.peak_memory import count_free_mib
from cellvision.models.base import SegNet
from cellvision.runtime.cells import Cells
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import Detections
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.tiles.budget import find_window_px
from cellvision.training.scoring import predict_field
from cellvision.types import Sample

PAIRED = ("scores", "masks", "boxes")
"""Of detections that the net and a form both have, what is compared."""

LARGEST_WHOLE_PX = 2048
"""Fields up to this edge are shown to a bundle in one piece, as PyTorch sees them."""


def open_net(
    net: SegNet, *, splitting: Splitting, live_threshold: float, detecting: Detecting | None = None
) -> Callable[[Sample], Found]:
    """What finds the cells of a sample with the net in PyTorch, as training scores it.

    What it returns raises ExportError where the net gives NaN.

    Args:
        net: any; it is not touched.
        splitting: how cells are separated.
        live_threshold: a cell is live where P(live) reaches it.
        detecting: of the bundles that are compared with it; None for the net's own.
    """
    run = open_eager(net, detecting=detecting)

    def predict(sample: Sample) -> Found:
        batch = collate([(to_field(sample, range(len(sample.image))), sample)], with_distance=False)
        outputs = {name: values.numpy() for name, values in run(batch.images).items()}
        if not all(np.isfinite(values).all() for values in outputs.values()):
            got = f"the net gives NaN or infinite values for {sample.name}"
            raise ExportError(explain(got=got, need="a net that has learned something", hint="another checkpoint"))
        field = predict_field(net.spec, batch, 0, outputs, splitting=splitting, live_threshold=live_threshold)
        is_instance = net.spec.kind == "instance"
        return Found(
            cells=field.cells,
            probabilities=None if is_instance else field.probabilities,
            detections=field.detections,
        )

    return predict


def open_bundle(bundle: Path, *, largest_px: int, threads: int | None = None) -> Callable[[Sample], Found]:
    """What finds the cells of a sample with a bundle, through the runtime: in one piece where the bundle takes that.

    Args:
        bundle: folder.
        largest_px: longest edge of the samples that will come.
        threads: of the processor; None for as many as PyTorch uses.
    """
    whole_px = min(largest_px, LARGEST_WHOLE_PX)
    predictor = Predictor(
        bundle,
        threads=threads or torch.get_num_threads(),
        tile_px=whole_px if whole_px <= find_window_px(bundle, load_manifest(bundle))[1] else None,
        memory_mib=count_free_mib(),
    )

    def predict(sample: Sample) -> Found:
        scale = _find_scale(sample.image.dtype, predictor.manifest)
        if predictor.manifest.kind == "instance":
            detections = predictor.detect(sample.image, intensity_scale=scale)
            return Found(cells=_build_cells(detections, sample, predictor.manifest), detections=detections)
        cells, probabilities = predictor.predict_with_probabilities(sample.image, intensity_scale=scale)
        return Found(cells=cells, probabilities=probabilities)

    return predict


def _build_cells(detections: Detections, sample: Sample, manifest: Manifest) -> Cells:
    """The cells that a call of the predictor gives, without a second run of the net."""
    return build_detected_cells(
        detections,
        sample.image,
        splitting=manifest.splitting,
        classes=manifest.classes,
        channels=tuple(channel.name for channel in manifest.channels),
        live_threshold=manifest.live_threshold if has_viability(manifest.classes) else None,
    )


class Agreement:
    """How far a form of a net agrees with the net in PyTorch, over the fields that were added.

    Args:
        classes: background first.
    """

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._differences = {name: _Difference() for name in ("", *PAIRED)}
        self._other_class, self._pixels = 0, 0
        self._fields: list[FieldScore] = []

    def add(self, of_net: Found, of_form: Found) -> None:
        """Compare a field."""
        if of_net.probabilities is not None and of_form.probabilities is not None:
            self._differences[""].add(of_net.probabilities, of_form.probabilities)
            other = of_net.probabilities.argmax(axis=0) != of_form.probabilities.argmax(axis=0)
            self._other_class += int(other.sum())
            self._pixels += other.size
        if of_net.detections is not None and of_form.detections is not None:
            first, second = pair_detections(of_net.detections, of_form.detections)
            for name in PAIRED:
                self._differences[name].add(getattr(first, name), getattr(second, name))
        net, form = of_net.cells, of_form.cells
        assert net.label_image is not None
        assert form.label_image is not None
        self._fields.append(
            compute_field_score(
                pred_label_image=form.label_image,
                pred_classes=form.class_id,
                true_label_image=net.label_image,
                true_classes=net.class_id,
                classes=self._classes,
            )
        )

    def compute(self) -> dict[str, float]:
        """How far they agree.

        "cells_net" and "cells" are the numbers of cells, "cell_f1" the F1 (IoU 0.5) and "cell_iou" the mean overlap of
        the form's cells with the net's, "cell_class_difference" the share of the pairs whose class differs. What is
        undefined (no cells) is absent.

        With maps also "max_difference" and "mean_difference" of a probability, and "class_difference", the share of
        pixels with another class. With detections the same of those whose boxes differ by at most 1 px: "scores_..",
        "masks_.." (probabilities) and "boxes_.." (px).
        """
        total = sum_fields(self._fields, len(self._classes))
        scores = compute_cell_scores(total)
        found = {
            "cells_net": float(total.confusion[1:].sum()),
            "cells": float(total.confusion[:, 1:].sum()),
            "cell_f1": scores.f1,
            "cell_iou": scores.iou,
            "cell_class_difference": 1.0 - scores.matched_accuracy,
        }
        for name, difference in self._differences.items():
            if difference.values:
                start = f"{name}_" if name else ""
                found[f"{start}max_difference"] = difference.largest
                found[f"{start}mean_difference"] = difference.total / difference.values
        if self._pixels:
            found["class_difference"] = self._other_class / self._pixels
        return {name: value for name, value in found.items() if not np.isnan(value)}


class _Difference:
    """The largest and the sum of absolute differences, over all values that were added."""

    def __init__(self) -> None:
        self.largest, self.total, self.values = 0.0, 0.0, 0

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        difference = np.abs(one - other)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.total += float(difference.sum(dtype=np.float64))
        self.values += difference.size


def _find_scale(dtype: np.dtype, manifest: Manifest) -> float | None:
    """None where the bundle takes images of this dtype as they are, 1 where their counts must be said to be equal."""
    is_known = dtype.name in manifest.image_dtypes and np.can_cast(dtype, manifest.input_dtype)
    return None if is_known else 1.0
