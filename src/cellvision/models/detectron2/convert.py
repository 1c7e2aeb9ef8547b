"""Cells as detectron2 writes them and as we do; its own package is imported only when a function runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cellvision.models.centermask2.fcos.decode import Proposals
from cellvision.models.centermask2.ground_truth.cells import GroundTruth, MaskTargets
from cellvision.models.centermask2.ground_truth.polygon_masks import PolygonMasks
from cellvision.models.centermask2.roi.heads import DrawnMasks
from cellvision.types import IGNORE, Targets

_MASKS_AT_ONCE = 16


class BitmapMasks:
    """True masks from detectron2's BitMasks, which may overlap; see MaskTargets.

    A few at a time: cutting the masks of all regions at once would hold as many full images in memory.
    """

    def __init__(self, masks: Tensor) -> None:
        """Keep the (N, H, W) bool masks."""
        self.masks = masks

    def crop(self, boxes: Tensor, index: Tensor, side: int) -> Tensor:
        """(R, side, side) bool, cut by detectron2's own rule; see MaskTargets."""
        from detectron2.structures import BitMasks

        parts = zip(boxes.split(_MASKS_AT_ONCE), index.split(_MASKS_AT_ONCE), strict=True)
        found = [BitMasks(self.masks[cells]).crop_and_resize(some, side) for some, cells in parts if len(cells)]
        return torch.cat(found) if found else self.masks.new_zeros(0, side, side)

    def inside_share(self, boxes: Tensor, index: Tensor) -> Tensor:
        """(R,) float32 in 0..1, the share of the cell's pixels whose centre is in the box; see MaskTargets."""
        rows = _find_inside(boxes[:, 1::2], self.masks.shape[1])
        columns = _find_inside(boxes[:, 0::2], self.masks.shape[2])
        shares = boxes.new_zeros(len(boxes), dtype=torch.float32)
        for part in torch.arange(len(boxes), device=boxes.device).split(_MASKS_AT_ONCE):
            masks = self.masks[index[part]]
            inside = masks & rows[part].unsqueeze(2) & columns[part].unsqueeze(1)
            shares[part] = inside.sum((1, 2)) / masks.sum((1, 2)).clamp_min(1)
        return shares


def _find_inside(sides: Tensor, length: int) -> Tensor:
    """(R, length) bool: which pixel centres of an axis lie between the (R, 2) sides of each box."""
    centres = torch.arange(length, device=sides.device) + 0.5
    return (centres > sides[:, :1]) & (centres < sides[:, 1:])


def to_truth(instances: Any) -> GroundTruth:
    """The true cells of detectron2's training Instances, with polygons or bitmaps as masks."""
    boxes = instances.gt_boxes.tensor.float()
    masks: MaskTargets = PolygonMasks([]) if len(instances) == 0 else _to_masks(instances.gt_masks)
    return GroundTruth(boxes=boxes, classes=instances.gt_classes.long(), masks=masks)


def _to_masks(masks: Any) -> MaskTargets:
    from detectron2.structures import BitMasks

    return BitmapMasks(masks.tensor) if isinstance(masks, BitMasks) else PolygonMasks(masks.polygons)


def to_instances(found: Proposals, size: tuple[int, int]) -> Any:
    """detectron2's Instances of one image of ``size`` (height, width) px, without its padding."""
    from detectron2.structures import Boxes, Instances

    return Instances(
        size,
        pred_boxes=Boxes(found.boxes),
        scores=found.scores,
        pred_classes=found.classes,
        locations=found.locations,
    )


def to_proposals(instances: Any) -> Proposals:
    """Boxes with classes from detectron2's Instances; what these lack is 0, as masks do not depend on it."""
    boxes = instances.pred_boxes.tensor.float()
    count = len(boxes)
    return Proposals(
        boxes=boxes,
        scores=instances.scores if instances.has("scores") else boxes.new_zeros(count),
        classes=instances.pred_classes,
        locations=boxes.new_zeros(count, 2),
        class_scores=boxes.new_zeros(count, 1),
    )


def add_masks(instances: Any, drawn: DrawnMasks) -> Any:
    """The Instances with "pred_masks" (D, 1, M, M) in 0..1 and "mask_scores", which equal the scores where none are."""
    instances.pred_masks = drawn.masks.unsqueeze(1)
    if instances.has("scores"):
        instances.mask_scores = instances.scores if drawn.ious is None else instances.scores * drawn.ious
    return instances


def build_truths(targets: Targets, size: tuple[int, int]) -> list[Any]:
    """detectron2's training Instances of every image of a batch, with bitmaps as masks.

    Cells of class IGNORE are left out: detectron2 has no such thing, and learns them as background.

    Args:
        targets: see Targets.
        size: height and width of the batch, for images that fill it.
    """
    sizes = targets.sizes or (size,) * len(targets.label_image)
    return [
        _build_truth(label_image[:height, :width], classes.to(label_image.device))
        for label_image, classes, (height, width) in zip(targets.label_image, targets.cell_classes, sizes, strict=True)
    ]


def _build_truth(label_image: Tensor, cell_classes: Tensor) -> Any:
    from detectron2.structures import BitMasks, Boxes, Instances

    labels = label_image.unique()
    labels = labels[labels > 0].long()
    labels = labels[cell_classes[labels - 1] != IGNORE]
    masks = label_image == labels.view(-1, 1, 1)
    x0, x1 = _find_ends(masks.any(1))
    y0, y1 = _find_ends(masks.any(2))
    return Instances(
        (label_image.shape[0], label_image.shape[1]),
        gt_boxes=Boxes(torch.stack([x0, y0, x1, y1], dim=1).float()),
        gt_classes=cell_classes[labels - 1] - 1,
        gt_masks=BitMasks(masks),
    )


def _find_ends(is_there: Tensor) -> tuple[Tensor, Tensor]:
    """First place, and place behind the last, of each row of (N, length) bool."""
    marks = is_there.byte()
    return marks.argmax(1), is_there.shape[1] - marks.flip(1).argmax(1)


def join(found: Sequence[Any], *, class_count: int, has_mask_scores: bool) -> dict[str, Tensor]:
    """The results of a net of kind instance from detectron2's Instances of every image, in the frame of the network.

    Boxes are clipped to the image and those without area left out; cells are in order of their scores. A class that
    was not chosen has a class score of 0, as detectron2 keeps the chosen one only.

    Args:
        found: with "pred_boxes", "scores", "pred_classes" and "pred_masks" (D, 1, M, M), at least one.
        class_count: K-1.
        has_mask_scores: whether "mask_scores" are passed on.
    """
    kept = [_clip(one) for one in found]
    most = max(map(len, kept))
    names = ["boxes", "scores", "classes", "valid", "class_scores", "masks", *["mask_scores"] * has_mask_scores]
    columns = [_to_columns(one, class_count) for one in kept]
    return {name: torch.stack([_fill_up(column[name], most) for column in columns]) for name in names}


def _clip(instances: Any) -> Any:
    instances.pred_boxes.clip(instances.image_size)
    kept = instances[instances.pred_boxes.nonempty()]
    return kept[kept.scores.argsort(descending=True, stable=True)]


def _to_columns(instances: Any, class_count: int) -> dict[str, Tensor]:
    scores, classes = instances.scores.float(), instances.pred_classes
    chosen = torch.nn.functional.one_hot(classes, class_count)
    columns = {
        "boxes": instances.pred_boxes.tensor.float(),
        "scores": scores,
        "classes": classes + 1,
        "valid": torch.ones_like(classes, dtype=torch.bool),
        "class_scores": chosen * scores.unsqueeze(1),
        "masks": instances.pred_masks.squeeze(1).float(),
    }
    return columns | ({"mask_scores": instances.mask_scores.float()} if instances.has("mask_scores") else {})


def _fill_up(values: Tensor, count: int) -> Tensor:
    """The (D, ...) values with zeros behind them, ``count`` in all."""
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])
