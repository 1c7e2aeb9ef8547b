"""Our CenterMask2 as the three parts that detectron2 makes a net of, and that net.

The names of the parts in the net are detectron2's, which are also those of the published weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2 import assembly
from cellvision.models.centermask2.config_file.reader import read_known_keys
from cellvision.models.centermask2.config_file.settings import CenterMaskSettings
from cellvision.models.centermask2.fcos.branch import Fcos
from cellvision.models.centermask2.roi.heads import CenterRoiHeads
from cellvision.models.centermask2.settings import NetSettings
from cellvision.models.detectron2.convert import add_masks, to_instances, to_proposals, to_truth
from cellvision.models.detectron2.install import load_detectron2

try:
    load_detectron2()
    from detectron2.config import configurable
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone, GeneralizedRCNN
except ImportError:  # the file can be read all the same; whatever makes one of the classes says what to install
    Backbone = GeneralizedRCNN = nn.Module
    configurable = ShapeSpec = lambda function, **_: function


class PyramidBackbone(FPN, Backbone):
    """The backbone with its pyramid; levels are called p3, p4, ... as detectron2 wants it."""

    size_divisibility = 0
    """An attribute that FPN sets; detectron2 has a property of this name."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """{"p3": (B, C, H / 8, W / 8), ...} of (B, C, H, W) normalised, padded images, finest first."""
        return {f"p{level}": maps for level, maps in super().forward(images).items()}

    def output_shape(self) -> dict[str, Any]:
        """Channels and stride of every level."""
        return {f"p{level}": ShapeSpec(channels=self.out_channels, stride=self.strides[level]) for level in self.levels}


class CenterProposals(Fcos):
    """FCOS as a proposal generator."""

    def forward(
        self, images: Any, features: Mapping[str, Tensor], gt_instances: Sequence[Any] | None = None
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """Boxes of every image, and in training the losses.

        Args:
            images: ImageList; only its sizes count.
            features: of PyramidBackbone.
            gt_instances: one Instances per image, with boxes, classes and masks, or None.
        """
        outputs = self.predict(_to_pyramid(features))
        losses = {} if gt_instances is None else self.losses(outputs, [to_truth(one) for one in gt_instances])
        found = self.propose(outputs) if self.training else self.detect(outputs)
        sizes = [(int(height), int(width)) for height, width in images.image_sizes]
        instances = [to_instances(*one) for one in zip(found, sizes, strict=True)]
        for one in instances if self.training else ():
            one.proposal_boxes = one.pred_boxes  # where detectron2's picture of a training step looks for them
        return instances, losses


class CenterMaskHeads(CenterRoiHeads):
    """Mask and MaskIoU head as ROI heads.

    Attributes:
        mask_on: whether masks are drawn; test-time augmentation switches it off while it looks for boxes.
    """

    mask_on = True

    def forward(
        self,
        images: Any,
        features: Mapping[str, Tensor],
        proposals: Sequence[Any],
        targets: Sequence[Any] | None = None,
    ) -> tuple[list[Any], dict[str, Tensor]]:
        """The proposals with masks, or in training as they are, with the losses.

        Args:
            images: not looked at.
            features: of PyramidBackbone.
            proposals: of CenterProposals.
            targets: one Instances per image, in training.
        """
        if not self.training:
            return self.forward_with_given_boxes(features, list(proposals)), {}
        assert targets is not None, "training needs the truth"
        truths = [to_truth(one) for one in targets]
        sizes = [one.image_size for one in proposals]
        found = [to_proposals(one) for one in proposals]
        return list(proposals), self.losses(_to_pyramid(features), sizes, found, truths)

    def forward_with_given_boxes(self, features: Mapping[str, Tensor], instances: list[Any]) -> list[Any]:
        """The Instances, which have boxes and classes, with "pred_masks" and "mask_scores"."""
        if not self.mask_on:
            return instances
        sizes = [one.image_size for one in instances]
        drawn = self.detect(_to_pyramid(features), sizes, [to_proposals(one) for one in instances])
        return [add_masks(*one) for one in zip(instances, drawn, strict=True)]


class CellvisionCenterMask(GeneralizedRCNN):
    """CenterMask2 as detectron2's GeneralizedRCNN, whose contract for inputs and results it keeps.

    Results have "mask_scores" in any case, also where nothing is found or masks are not rated.

    Attributes:
        compatible: pad the images of a batch to one size in evaluation too, as the official code does. The head's
            group normalisation sees the padding, so that the answers then depend on each other.
    """

    @configurable
    def __init__(self, *, compatible: bool = False, **parts: Any) -> None:
        """Take the arguments of GeneralizedRCNN besides ``compatible``."""
        super().__init__(**parts)
        self.compatible = compatible

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments from a config to which ``add_centermask_config`` was applied."""
        return {**build_parts(read_known_keys(cfg).net), "vis_period": cfg.VIS_PERIOD}

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Any] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """As in GeneralizedRCNN, one image after the other unless ``compatible``."""
        if self.compatible or len(batched_inputs) <= 1:
            return super().inference(batched_inputs, detected_instances, do_postprocess)
        boxes = [None] * len(batched_inputs) if detected_instances is None else [[one] for one in detected_instances]
        pairs = zip(batched_inputs, boxes, strict=True)
        return [super(CellvisionCenterMask, self).inference([one], box, do_postprocess)[0] for one, box in pairs]


def build_parts(given: CenterMaskSettings) -> dict[str, Any]:
    """What CellvisionCenterMask is made of."""
    return {
        "backbone": build_backbone(given, len(given.pixel_mean)),
        "proposal_generator": build_proposals(given),
        "roi_heads": build_roi_heads(given),
        "pixel_mean": given.pixel_mean,
        "pixel_std": given.pixel_std,
        "input_format": given.channel_order,
    }


def build_backbone(given: CenterMaskSettings, in_channels: int) -> FPN:
    """The backbone with random weights, a PyramidBackbone."""
    settings = NetSettings.from_config_file(given)
    return assembly.build_backbone(settings, in_channels=in_channels, kind=PyramidBackbone)


def build_proposals(given: CenterMaskSettings) -> Fcos:
    """The proposal generator with random weights, a CenterProposals."""
    settings = NetSettings.from_config_file(given)
    return assembly.build_fcos(settings, _list_strides(given), class_count=given.num_classes, kind=CenterProposals)


def build_roi_heads(given: CenterMaskSettings) -> CenterRoiHeads:
    """The ROI heads with random weights, a CenterMaskHeads."""
    settings = NetSettings.from_config_file(given)
    return assembly.build_roi_heads(settings, _list_strides(given), class_count=given.num_classes, kind=CenterMaskHeads)


def _list_strides(given: CenterMaskSettings) -> dict[int, int]:
    """{level: px} of the whole pyramid; detectron2 makes the parts one by one, and the heads never see the backbone."""
    return {level: 2**level for level in range(given.levels[0], given.levels[-1] + given.top_levels + 1)}


def _to_pyramid(features: Mapping[str, Tensor]) -> dict[int, Tensor]:
    return {int(name.removeprefix("p")): maps for name, maps in features.items()}
