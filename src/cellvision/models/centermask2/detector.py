"""CenterMask: a backbone with a feature pyramid, boxes from FCOS, and a mask in every box.

Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation" (CVPR 2020), second version. Names and shapes
of the weights are those of the published nets, so that their checkpoints load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cellvision.errors import ConfigError, explain
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.fcos.branch import Fcos
from cellvision.models.centermask2.fcos.decode import Proposals
from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.roi.heads import CenterRoiHeads, DrawnMasks
from cellvision.models.centermask2.roi.pool import Sizes


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """The cells found in one image, best box first; K cell classes, without a background.

    Attributes:
        boxes: (D, 4) float32 x0, y0, x1, y1 in px of the padded input; may reach beyond the image.
        scores: (D,) float32 in 0..1: sqrt(class probability * centre-ness).
        classes: (D,) int64, 0..K-1.
        locations: (D, 2) float32 x, y in px of the place that found the cell.
        class_scores: (D, K) float32 in 0..1: probability of each class at that place; they need not sum to 1.
        masks: (D, 28, 28) float32 in 0..1: probability of the cell in the frame of its box.
        mask_scores: (D,) float32: score times expected quality of the mask, unbounded; None without a MaskIoU head.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    locations: Tensor
    class_scores: Tensor
    masks: Tensor
    mask_scores: Tensor | None


class CenterMask(nn.Module):
    """The net from normalised, padded images to cells.

    There is no ``forward``: training and detection take the same two steps, ``encode`` and ``predict``, and go on from
    there, so that validation runs the net once for losses and cells.
    """

    def __init__(self, *, backbone: FPN, proposal_generator: Fcos, roi_heads: CenterRoiHeads) -> None:
        """Join the parts.

        Raises:
            ConfigError: a part asks for a pyramid level that the backbone lacks, or believes it has another stride.
        """
        super().__init__()
        _check_levels("model.levels", proposal_generator.strides, backbone.strides)
        _check_levels("model.roi_levels", roi_heads.pool.strides, backbone.strides)
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads

    def encode(self, images: Tensor) -> dict[int, Tensor]:
        """The pyramid.

        Args:
            images: (B, C, H, W) float32, normalised, H and W multiples of ``backbone.size_divisibility``; smaller
                images are padded on the right and at the bottom with 0.

        Returns:
            {level: (B, C', H / stride, W / stride)}, finest first.
        """
        kind = next(self.backbone.parameters()).dtype  # float16 in a net made for export
        pyramid: dict[int, Tensor] = self.backbone(images.to(kind))
        return pyramid

    def predict(self, pyramid: Mapping[int, Tensor]) -> FcosOutputs:
        """Classes, boxes and centre-ness at every place of the pyramid."""
        return self.proposal_generator.predict(pyramid)

    def losses(
        self, pyramid: Mapping[int, Tensor], outputs: FcosOutputs, sizes: Sizes, truths: Sequence[GroundTruth]
    ) -> dict[str, Tensor]:
        """What training minimises the sum of.

        Every weight has a part in every loss of its branch, and so a gradient, also where a batch holds no cell.

        Args:
            pyramid: of ``encode``.
            outputs: of ``predict``.
            sizes: height and width of each image without its padding.
            truths: one per image.

        Returns:
            Scalars "loss_mask", "loss_maskiou" (with a MaskIoU head), "loss_fcos_cls", "loss_fcos_loc" and
            "loss_fcos_ctr".
        """
        proposals = self.proposal_generator.propose(outputs)
        return {
            **self.roi_heads.losses(pyramid, sizes, proposals, truths),
            **self.proposal_generator.losses(outputs, truths),
        }

    def detect(self, pyramid: Mapping[int, Tensor], outputs: FcosOutputs, sizes: Sizes) -> list[Detections]:
        """The cells of every image; arguments as in ``losses``."""
        proposals = self.proposal_generator.detect(outputs)
        drawn = self.roi_heads.detect(pyramid, sizes, proposals)
        return [_join(found, masks) for found, masks in zip(proposals, drawn, strict=True)]


def _join(found: Proposals, drawn: DrawnMasks) -> Detections:
    scores = None if drawn.ious is None else found.scores * drawn.ious
    return Detections(**vars(found), masks=drawn.masks, mask_scores=scores)


def _check_levels(key: str, asked: Mapping[int, int], given: Mapping[int, int]) -> None:
    if not asked.items() <= given.items():
        got = f"{key} as level: stride in px are {dict(asked)}"
        need = f"some of the pyramid's {dict(given)}"
        raise ConfigError(explain(got=got, need=need, hint=f"{key}={list(given)}"))
