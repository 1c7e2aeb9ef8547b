"""A lesson for a net that finds cells: the boxes at all places, features, and masks in the student's own boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cellvision.compression.distill.adapters import cut_to_shared, find_shared
from cellvision.compression.distill.detection_losses import (
    compute_fcos_box_loss,
    compute_fcos_centre_loss,
    compute_fcos_class_loss,
    compute_quality,
)
from cellvision.compression.distill.feature_losses import compute_attention_loss
from cellvision.compression.distill.lesson import Lesson
from cellvision.compression.distill.mask_losses import compute_mask_loss, compute_rating_loss
from cellvision.compression.distill.taps import Seen, list_points, watch
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.centermask2.roi.mask_head import choose_class
from cellvision.ops.boxes import match_boxes
from cellvision.types import Targets


@dataclass(kw_only=True)
class CellLesson(Lesson):
    """See Lesson.

    Masks are compared in the boxes that the student is trained on in this step; the teacher sees there its own pyramid.
    A semantic branch is not taught.

    Attributes:
        net: the student.
        teacher: whose mask branch is asked.
    """

    net: CenterMask2
    teacher: CenterMask2

    def fcos_class(self) -> Tensor:
        """See `compute_fcos_class_loss`; all shared levels together."""
        manner = self.manner
        pair = self._list_places("class_logits")
        return compute_fcos_class_loss(*pair, gamma=manner.quality_power, temperature=manner.temperature)

    def fcos_box(self) -> Tensor:
        """See `compute_fcos_box_loss`."""
        return compute_fcos_box_loss(*self._list_places("ltrb"), self._quality, confident=self.manner.confident)

    def fcos_centre(self) -> Tensor:
        """See `compute_fcos_centre_loss`."""
        pair = self._list_places("centreness_logits")
        return compute_fcos_centre_loss(*pair, self._quality, confident=self.manner.confident)

    def masks(self) -> Tensor:
        """See `compute_mask_loss`."""
        pairs = (self.seen["masks"][1], self._drawn["masks"][1])
        student, teacher = (choose_class(maps, self._classes).float().squeeze(1) for maps in pairs)
        return compute_mask_loss(student, teacher, temperature=self.manner.temperature)

    def attention(self) -> Tensor:
        """See `compute_attention_loss`: where in a box the mask branches look."""
        return compute_attention_loss(self.seen["attention"][1].float(), self._drawn["attention"][1].float())

    def mask_iou(self) -> Tensor:
        """See `compute_rating_loss`: both rate the student's masks."""
        (_, masks), student = self.seen["ratings"]
        head = self.teacher.detector.roi_heads.maskiou_head
        assert head is not None
        with torch.no_grad():
            teacher = head(self._pooled, masks.detach().float())
        chosen = (each.float().gather(1, self._classes.unsqueeze(1)).squeeze(1) for each in (student, teacher))
        return compute_rating_loss(*chosen)

    def find_features(self, stride: int) -> tuple[Tensor, Tensor]:
        """See Lesson."""
        strides = self.net.detector.backbone.strides
        found = {strides[level]: maps for level, maps in self.seen["pyramid"][1].items()}
        return found[stride], self.told[f"pyramid_{stride}"]

    def _list_places(self, name: str) -> tuple[Tensor, Tensor]:
        """Two of (P, C) float32: what student and teacher say at the places that both have."""
        own = list_strides(self.net)
        found = dict(zip(own, getattr(self.seen["fcos"][1], name), strict=True))
        shared = find_shared(own, list_strides(self.teacher))
        pairs = [cut_to_shared(found[stride], self.told[f"{name}_{stride}"]) for stride in shared]
        student, teacher = zip(*pairs, strict=True)
        return _to_rows(student), _to_rows(teacher)

    @cached_property
    def _quality(self) -> Tensor:
        return compute_quality(self._list_places("class_logits")[1], self._list_places("centreness_logits")[1])

    @cached_property
    @torch.no_grad()
    def _pooled(self) -> Tensor:
        """(R, C, S, S) of the teacher's pyramid in the student's boxes."""
        _, *boxes = self.seen["regions"][0]
        strides = self.teacher.detector.backbone.strides
        pyramid = {level: self.told[f"pyramid_{stride}"] for level, stride in strides.items()}
        pooled: Tensor = self.teacher.detector.roi_heads.pool(pyramid, *boxes)
        return pooled

    @cached_property
    @torch.no_grad()
    def _drawn(self) -> Seen:
        """What the teacher's mask branch does there."""
        seen = Seen()
        points = {name: each for name, each in list_points(self.teacher).items() if name in ("masks", "attention")}
        handles = watch(points, seen)
        try:
            self.teacher.detector.roi_heads.mask_head(self._pooled)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    @cached_property
    def _classes(self) -> Tensor:
        """(R,) int64, 0..K-1."""
        _, boxes, images, _ = self.seen["regions"][0]
        return find_classes(boxes, images, self.batch.targets, class_count=len(self.net.spec.classes) - 1)


def find_classes(boxes: Tensor, images: Tensor, targets: Targets, *, class_count: int) -> Tensor:
    """(R,) int64 class, 0..K-1, of the cell that each box shows: found as the box itself was, by the largest overlap.

    Args:
        boxes: (R, 4) px, each on a cell.
        images: (R,) int64, of each box.
        targets: of the batch.
        class_count: K, without the background.
    """
    classes = torch.zeros_like(images)
    for at in range(len(targets.label_image) if class_count > 1 else 0):
        here = (images == at).nonzero().squeeze(1)
        if len(here):
            truth = truth_from_labels(targets.label_image[at], targets.cell_classes[at])
            classes[here] = truth.classes[match_boxes(boxes[here], truth.boxes)[1]]
    return classes


def list_strides(net: CenterMask2) -> Mapping[int, int]:
    """{stride in px: level} of the maps on which boxes are predicted, finest first."""
    return {stride: level for level, stride in net.detector.proposal_generator.strides.items()}


def list_missing_of_cells(student: CenterMask2, teacher: CenterMask2) -> dict[str, str]:
    """{term: why it cannot be taught}.

    Raises:
        ConfigError: boxes are predicted at no common stride.
    """
    find_shared(list_strides(student), list_strides(teacher))
    own, others = list_points(student), list_points(teacher)
    missing = {}
    for term, point, what in (("attention", "attention", "spatial attention"), ("mask_iou", "ratings", "MaskIoU head")):
        lacking = [who for who, points in (("student", own), ("teacher", others)) if point not in points]
        if lacking:
            missing[term] = f"the {' and the '.join(lacking)} without {what}"
    return missing


def _to_rows(maps: tuple[Tensor, ...]) -> Tensor:
    """(P, C) float32 of a (B, C, H, W) per level."""
    return torch.cat([each.permute(0, 2, 3, 1).flatten(0, 2) for each in maps]).float()
