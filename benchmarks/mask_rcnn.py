"""torchvision's Mask R-CNN as a net of this library, so that both are trained by the same task on the same crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList

from cellvision.models.base import NetSpec, SegNet
from cellvision.models.build import MODELS
from cellvision.models.preprocess import Normalize
from cellvision.types import IGNORE, DataStats, Targets

STRIDE = 32
ANCHORS_PX = (12, 24, 48, 96, 192)
"""One size per level, for cells; torchvision's own (32 to 512) are for photographs of 800 px."""


@MODELS.register("mask_rcnn")
class MaskRcnn(SegNet):
    """Mask R-CNN (He et al. 2017) with a ResNet and FPN, from random weights with trainable batch norm.

    Images are worked on at their own size; torchvision's default enlarges them to 800 px, which costs a small image
    ten times the time. It learns boxes and masks from as many regions per image as our recipes do (a quarter of them
    on cells), not from torchvision's 512, of which a crop of a few cells would make many copies.
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        in_channels: int,
        classes: Sequence[str],
        kind: str = "instance",
        backbone: str = "resnet50",
        detections: int = 500,
        per_image: int = 128,
    ) -> None:
        super().__init__()
        pyramid = resnet_fpn_backbone(
            backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        pyramid.body.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        anchors = AnchorGenerator(tuple((size,) for size in ANCHORS_PX), ((0.5, 1.0, 2.0),) * len(ANCHORS_PX))
        self.model = MaskRCNN(
            pyramid,
            num_classes=len(classes),
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_test=2000,
            rpn_post_nms_top_n_test=2000,
            box_detections_per_img=detections,
            box_batch_size_per_image=per_image,
        )
        self.normalize = Normalize(in_channels)
        outputs = ("boxes", "scores", "classes", "valid", "class_scores", "masks")
        self.spec = NetSpec(
            name="mask_rcnn",
            kind=kind,
            in_channels=in_channels,
            classes=tuple(classes),
            stride=STRIDE,
            outputs=outputs,
            tiles=False,
            exportable=False,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See SegNet."""
        return self.decode(self.logits(images))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid's levels, and the images' size."""
        return {**self.features(images), "size": torch.tensor(images.shape[-2:])}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid's levels, finest first."""
        height, width = images.shape[-2:]
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        return dict(self.model.backbone(nn.functional.pad(self.normalize(images), padding)))

    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Detections, padded to the most of an image."""
        size = tuple(int(side) for side in logits["size"])
        images, features = self._split(logits)
        proposals, _ = self.model.rpn(images, features)
        found, _ = self.model.roi_heads(features, proposals, [size] * len(images.tensors))
        pad = {name: pad_sequence([one[name] for one in found], batch_first=True) for name in found[0]}
        scores, classes = pad["scores"], pad["labels"]
        counts = torch.tensor([len(one["scores"]) for one in found], device=scores.device)
        kinds = torch.arange(1, len(self.spec.classes), device=scores.device)
        return {
            "boxes": pad["boxes"],
            "scores": scores,
            "classes": classes.clamp(min=1),
            "valid": torch.arange(scores.shape[1], device=scores.device) < counts[:, None],
            "class_scores": (classes[..., None] == kinds) * scores[..., None],
            "masks": pad["masks"].squeeze(2),
        }

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses."""
        return self.losses_from(self.logits(images), targets)

    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The same, from the results of ``logits``."""
        images, features = self._split(logits)
        truths = [_to_truth(*one) for one in zip(targets.label_image, targets.cell_classes, strict=True)]
        parts = (self.model.rpn, self.model.roi_heads)
        before = [part.training for part in parts]
        for part in parts:
            part.train()
        proposals, losses = self.model.rpn(images, features, truths)
        _, more = self.model.roi_heads(features, proposals, images.image_sizes, truths)
        for part, was in zip(parts, before, strict=True):
            part.train(was)
        return {**losses, **more}

    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation from the training data."""
        self.normalize.set_statistics(stats)

    def _split(self, logits: Mapping[str, Tensor]) -> tuple[ImageList, dict[str, Tensor]]:
        features = {name: maps for name, maps in logits.items() if name != "size"}
        size = tuple(int(side) for side in logits["size"])
        finest = next(iter(features.values()))
        canvas = finest.new_empty((len(finest), 1, finest.shape[-2] * 4, finest.shape[-1] * 4))
        return ImageList(canvas, [size] * len(canvas)), features


def _to_truth(label_image: Tensor, cell_classes: Tensor) -> dict[str, Tensor]:
    """Torchvision's target of one image; cells of unknown class are left out."""
    ids = label_image.unique()
    ids = ids[ids > 0]
    classes = cell_classes[ids.long() - 1]
    ids, classes = ids[classes != IGNORE], classes[classes != IGNORE]
    masks = label_image == ids[:, None, None]
    rows, columns = masks.any(2), masks.any(1)
    sides = []
    for hits in (columns, rows):
        first = hits.float().argmax(1)
        last = hits.shape[1] - hits.flip(1).float().argmax(1)
        sides.append((first, last))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([left, top, right, bottom], dim=1).float()
    return {"boxes": boxes, "labels": classes, "masks": masks.to(torch.uint8)}
