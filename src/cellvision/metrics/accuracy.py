"""How right what was found is, whatever found it: the same counts for a net in PyTorch and for every form of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cellvision.metrics.cells import FieldScore, compute_cell_scores, compute_field_score, has_viability, sum_fields
from cellvision.metrics.instances.coco_ap import compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import Overlaps, compute_overlaps, join_overlaps
from cellvision.metrics.instances.scores import compute_instance_scores
from cellvision.metrics.semantic import compute_confusion, compute_semantic_scores
from cellvision.metrics.viability import FieldViability, compute_field_viability, compute_viability_scores
from cellvision.runtime.cells import Cells
from cellvision.runtime.detections.found import Detections
from cellvision.types import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a net, in whatever form, made of one field.

    Attributes:
        cells: with their label image.
        probabilities: (K, H, W) float32 in 0..1, or None where the net says nothing of pixels.
        detections: all that an instance net found, below any threshold too; None for other nets.
    """

    cells: Cells
    probabilities: np.ndarray | None = None
    detections: Detections | None = None


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A score by which forms of one net are compared.

    Attributes:
        score: its name.
        words: what it is called in a sentence.
        points: factor from the score to points, which is what a loss is stated in; below 0 where less is better.
        decides: whether a tolerance is of it; else it is shown beside those.
    """

    score: str
    words: str
    points: float = 100.0
    decides: bool = True

    def lose(self, before: float, after: float) -> float:
        """Points that are lost from ``before`` to ``after``, below 0 where some are won."""
        # Rounded far below meaning: 0.80 - 0.79 must not be more than one point for its last bit.
        return round((before - after) * self.points, 9)


_MIOU = Headline(score="pixel/miou", words="mean IoU")
_FOUND_F1 = Headline(score="cell/f1", words="found F1")
_MASK_AP = Headline(score="mask/ap", words="mask AP")
_DSB_50 = Headline(score="instance/ap_dsb_50", words="TP / (TP + FP + FN) at IoU 0.5")
_VIABILITY = (
    Headline(score="cell/live_dead_f1", words="live/dead F1"),
    Headline(score="field/viability_error_pp", words="viability error", points=-1.0),
)
HEADLINES: Mapping[str, tuple[Headline, ...]] = {
    "semantic": (_MIOU,),
    "viability": (_FOUND_F1, *_VIABILITY),
    "instance": (_MASK_AP, _DSB_50),
}


def choose_headlines(kind: str, classes: tuple[str, ...]) -> tuple[Headline, ...]:
    """The scores that decide on nets of a kind; the first is the one to show.

    Example:
        >>> [headline.score for headline in choose_headlines("viability", ("background", "live", "dead"))]
        ['cell/f1', 'cell/live_dead_f1', 'field/viability_error_pp']
    """
    also = _VIABILITY if kind == "instance" and has_viability(classes) else ()
    return HEADLINES[kind] + also


def choose_shown(kind: str, classes: tuple[str, ...]) -> tuple[Headline, ...]:
    """Those and, of nets whose cells decide, how well pixels are told apart: counts can stay while outlines do not.

    Example:
        >>> [headline.score for headline in choose_shown("viability", ("background", "live", "dead"))][-1]
        'pixel/miou'
    """
    also = (replace(_MIOU, decides=False),) if kind == "viability" else ()
    return choose_headlines(kind, classes) + also


class Accuracy:
    """Scores over the fields that were added: pixels, cells at IoU 0.5, viability, and average precision of masks.

    Args:
        classes: that are scored, background first. Where what was found has others, all its cells count as the first.
        mask_threshold: smallest probability of a detected cell's pixel, in (0, 1].
    """

    def __init__(self, classes: tuple[str, ...], *, mask_threshold: float = 0.5) -> None:
        self.classes, self.mask_threshold = classes, mask_threshold
        self.cells = 0
        self._confusion: np.ndarray | None = None
        self._fields: list[FieldScore] = []
        self._separate: list[Overlaps] = []
        self._detected: list[Overlaps] = []

    def add(self, sample: Sample, found: Found) -> None:
        """Count a field.

        Raises:
            ShapeError, DataError: what was found does not fit the sample, or has a class that is none.
        """
        cells = found.cells
        assert cells.label_image is not None
        same = cells.classes == self.classes
        self.cells += len(cells)
        if found.probabilities is not None:
            pixels = found.probabilities.argmax(axis=0)
            counts = compute_confusion(pixels if same else np.minimum(pixels, 1), sample.class_map, len(self.classes))
            self._confusion = counts if self._confusion is None else self._confusion + counts
        self._fields.append(
            compute_field_score(
                pred_label_image=cells.label_image,
                pred_classes=cells.class_id if same else np.ones(len(cells), np.int64),
                true_label_image=sample.label_image,
                true_classes=sample.cell_classes,
                classes=self.classes,
            )
        )
        if found.detections is not None:
            truth = InstanceField.from_label_image(sample.label_image, sample.cell_classes)
            self._separate.append(compute_overlaps(InstanceField.from_cells(cells), truth))
            named = found.detections
            if not same:
                named = replace(named, class_id=np.ones(len(named), np.int64))
            detected = InstanceField.from_detections(named, shape=cells.shape, mask_threshold=self.mask_threshold)
            self._detected.append(compute_overlaps(detected, truth))

    def compute(self) -> dict[str, float]:
        """Flat scores in 0..1, and "field/viability_error_pp" in points; undefined ones are absent, so none is NaN."""
        scores: dict[str, float] = {}
        if self._confusion is not None:
            scores |= compute_semantic_scores(self._confusion).to_dict(self.classes)
        scores |= compute_cell_scores(sum_fields(self._fields, len(self.classes))).to_dict(self.classes)
        if has_viability(self.classes):
            scores |= compute_viability_scores([self._to_viability(field) for field in self._fields]).to_dict()
        if self._detected:
            detected, separate = join_overlaps(self._detected), join_overlaps(self._separate)
            scores |= compute_coco_ap(detected, kind="mask", classes=self.classes).to_dict()
            # From what was delivered, whose scores have passed their threshold already.
            scores |= compute_instance_scores(separate, score_threshold=0.0).to_dict()
        return {name: scores[name] for name in _KEPT if name in scores}

    def _to_viability(self, field: FieldScore) -> FieldViability:
        true_live, true_dead, live, dead = field.count_viability(self.classes)
        return compute_field_viability(true_live=true_live, true_dead=true_dead, pred_live=live, pred_dead=dead)


_KEPT = (
    "pixel/miou",
    "pixel/foreground_iou",
    "cell/f1",
    "cell/live_dead_f1",
    "field/viability_error_pp",
    "mask/ap",
    "mask/ap50",
    "instance/f1",
    "instance/ap_dsb_50",
)
