"""The second half of the net: a mask in every box, and how good that mask is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellvision.models.centermask2.fcos.decode import Proposals
from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.options import MaskLosses, RoiSampling
from cellvision.models.centermask2.roi.mask_head import MaskHead, choose_class
from cellvision.models.centermask2.roi.maskiou_head import MaskIouHead, compute_mask_ious, compute_maskiou_loss
from cellvision.models.centermask2.roi.pool import RoiPool, Sizes, flatten_boxes
from cellvision.models.centermask2.roi.sampling import Regions, sample_regions
from cellvision.ops.mask_losses import compute_mask_bce, compute_mask_boundary, compute_mask_dice


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnMasks:
    """Masks of the boxes of one image, in the frame of each box.

    Attributes:
        masks: (D, 2 S, 2 S) float32 in 0..1, probability of the box's class.
        ious: (D,) float32, the expected intersection over union with the true mask, unbounded; None without such a
            head.
    """

    masks: Tensor
    ious: Tensor | None


class CenterRoiHeads(nn.Module):
    """Masks and their quality, learned from boxes on cells and drawn for all boxes found.

    Attributes:
        roi_chunk: so many boxes are drawn at once, which bounds memory whatever the number of cells. 64 took 1.9 ms per
            box of a lite net on one CPU core, 256 took 2.6 ms: small chunks stay in the cache.
    """

    def __init__(
        self,
        *,
        pool: RoiPool,
        mask_head: MaskHead,
        maskiou_head: MaskIouHead | None,
        sampling: RoiSampling,
        losses: MaskLosses,
        roi_chunk: int = 64,
    ) -> None:
        """Join the parts; ``maskiou_head`` None ranks cells by the score of their box alone."""
        super().__init__()
        self.pool = pool
        self.mask_head = mask_head
        self.maskiou_head = maskiou_head
        self.sampling = sampling
        self.loss_options = losses
        self.roi_chunk = roi_chunk

    def losses(
        self,
        pyramid: Mapping[int, Tensor],
        sizes: Sizes,
        proposals: Sequence[Proposals],
        truths: Sequence[GroundTruth],
    ) -> dict[str, Tensor]:
        """The losses "loss_mask" and, with a head for it, "loss_maskiou"; both 0 with a gradient without cells."""
        with torch.no_grad():
            regions = [
                sample_regions(found.boxes, truth, self.sampling)
                for found, truth in zip(proposals, truths, strict=True)
            ]
        features = self.pool(pyramid, *flatten_boxes([each.boxes for each in regions], sizes))
        classes = torch.cat([each.classes for each in regions])
        logits = choose_class(self.mask_head(features), classes).float()
        masks = crop_masks(regions, truths, side=logits.shape[-1])
        losses = {"loss_mask": self._compute_mask_loss(logits.squeeze(1), masks.to(logits.dtype))}
        if self.maskiou_head is not None:
            ious = self.maskiou_head(features, logits.sigmoid()).gather(1, classes.unsqueeze(1)).squeeze(1)
            truth = compute_mask_ious(logits.detach().squeeze(1), masks, compute_inside_shares(regions, truths))
            losses["loss_maskiou"] = self.loss_options.maskiou_weight * compute_maskiou_loss(ious.float(), truth)
        return losses

    def detect(self, pyramid: Mapping[int, Tensor], sizes: Sizes, proposals: Sequence[Proposals]) -> list[DrawnMasks]:
        """The masks of every image's boxes, drawn ``roi_chunk`` at a time."""
        boxes, images, image_areas = flatten_boxes([found.boxes for found in proposals], sizes)
        classes = torch.cat([found.classes for found in proposals])
        chunks = zip(*(each.split(self.roi_chunk) for each in (boxes, images, image_areas, classes)), strict=True)
        drawn = [self.draw(pyramid, *chunk) for chunk in chunks]
        counts = [len(found.boxes) for found in proposals]
        masks = torch.cat([each.masks for each in drawn]).split(counts)
        if self.maskiou_head is None:
            return [DrawnMasks(masks=each, ious=None) for each in masks]
        ious = torch.cat([each.ious for each in drawn if each.ious is not None]).split(counts)
        return [DrawnMasks(masks=each, ious=some) for each, some in zip(masks, ious, strict=True)]

    def draw(
        self, pyramid: Mapping[int, Tensor], boxes: Tensor, images: Tensor, image_areas: Tensor, classes: Tensor
    ) -> DrawnMasks:
        """The masks of (R, 4) boxes at once; the other arguments are those of RoiPool and (R,) int64 classes."""
        return self.draw_pooled(self.pool(pyramid, boxes, images, image_areas), classes)

    def draw_pooled(self, features: Tensor, classes: Tensor) -> DrawnMasks:
        """The masks of (R, C, S, S) pooled features; ``classes`` (R,) int64 in 0..K-1."""
        features = features.to(self.mask_head.predictor.weight.dtype)  # float16 in a net made for export
        masks = choose_class(self.mask_head(features), classes).float().sigmoid()
        if self.maskiou_head is None:
            return DrawnMasks(masks=masks.squeeze(1), ious=None)
        ious = self.maskiou_head(features, masks).gather(1, classes.unsqueeze(1)).squeeze(1)
        return DrawnMasks(masks=masks.squeeze(1), ious=ious.float())

    def _compute_mask_loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        loss, options = compute_mask_bce(logits, masks), self.loss_options
        if options.dice > 0:
            loss = loss + options.dice * compute_mask_dice(logits, masks)
        if options.boundary > 0:
            loss = loss + options.boundary * compute_mask_boundary(logits, masks)
        return loss


def crop_masks(regions: Sequence[Regions], truths: Sequence[GroundTruth], *, side: int) -> Tensor:
    """(R, side, side) bool: the true masks in the frames of the regions of all images."""
    pairs = zip(regions, truths, strict=True)
    return torch.cat([truth.masks.crop(each.boxes, each.cells, side) for each, truth in pairs])


def compute_inside_shares(regions: Sequence[Regions], truths: Sequence[GroundTruth]) -> Tensor:
    """(R,) float32 in 0..1: how much of its cell each region of all images holds."""
    pairs = zip(regions, truths, strict=True)
    return torch.cat([truth.masks.inside_share(each.boxes, each.cells) for each, truth in pairs])
