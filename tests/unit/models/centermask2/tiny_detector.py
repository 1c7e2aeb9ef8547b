"""A detector small enough to train on a CPU in a test, and fields of round cells for it."""

import numpy as np
import torch

from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.fcos.branch import Fcos
from cellvision.models.centermask2.fcos.head import FcosHead
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, FcosLosses, MaskLosses, RoiSampling
from cellvision.models.centermask2.roi.heads import CenterRoiHeads
from cellvision.models.centermask2.roi.mask_head import MaskHead
from cellvision.models.centermask2.roi.maskiou_head import MaskIouHead
from cellvision.models.centermask2.roi.pool import RoiPool


def build_tiny(
    *,
    classes=2,
    channels=16,
    levels=(3, 4, 5),
    top_levels=2,
    stem_stride=4,
    attention=True,
    mask_iou=True,
    mask_classes=None,
    assigning=None,
    losses=None,
    decoding=None,
    mask_losses=None,
    seed=0,
):
    """The net, the same for the same arguments."""
    torch.manual_seed(seed)
    bottom_up = build_bottom_up("vovnet19_slim_dw", in_channels=1, levels=levels, norm="group", stem_stride=stem_stride)
    fpn = FPN(bottom_up=bottom_up, levels=levels, out_channels=channels, top_levels=top_levels)
    shape = {"in_channels": channels, "width": channels, "conv_count": 1}
    sizes = tuple(16 * 2**index for index in range(len(fpn.levels) - 1))
    maskiou_head = MaskIouHead(**shape, class_count=classes, hidden=32) if mask_iou else None
    return CenterMask(
        backbone=fpn,
        proposal_generator=Fcos(
            head=FcosHead(
                channels=channels, class_count=classes, level_count=len(fpn.levels), class_convs=1, box_convs=1
            ),
            strides=fpn.strides,
            assigning=assigning or FcosAssigning(sizes_of_interest=sizes),
            losses=losses or FcosLosses(),
            decoding=decoding or FcosDecoding(),
            training_decoding=FcosDecoding(post_nms=100),
        ),
        roi_heads=CenterRoiHeads(
            pool=RoiPool(strides={level: fpn.strides[level] for level in levels}),
            mask_head=MaskHead(**shape, class_count=mask_classes or classes, attention=attention),
            maskiou_head=maskiou_head,
            sampling=RoiSampling(),
            losses=mask_losses or MaskLosses(),
        ),
    )


def make_field(height=96, width=128, count=12, seed=0, radius=(3, 9)):
    """(1, height, width) float32 image, bright where cells are, and its (height, width) int32 label image."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    labels = np.zeros((height, width), np.int32)
    for label in range(1, count + 1):
        y, x, r = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(*radius)
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= r**2] = label
    image = (labels > 0) * 2.0 - 1 + 0.1 * generator.standard_normal((height, width))
    return torch.from_numpy(image[None].astype(np.float32)), torch.from_numpy(labels)
