"""The parts of the detector put together as its settings say."""

from __future__ import annotations

from cellvision.errors import ConfigError, explain
from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.fcos import Fcos
from cellvision.models.centermask2.fcos_head import FcosHead
from cellvision.models.centermask2.mask_head import MaskHead
from cellvision.models.centermask2.maskiou_head import MaskIouHead
from cellvision.models.centermask2.roi_heads import CenterRoiHeads
from cellvision.models.centermask2.roi_pool import RoiPool
from cellvision.models.centermask2.semantic import SemanticBranch
from cellvision.models.centermask2.settings import NetSettings


def build_detector(settings: NetSettings, *, in_channels: int, class_count: int) -> CenterMask:
    """The detector with random weights.

    Args:
        settings: ``norm`` is one of NORMS by now.
        in_channels: of the image.
        class_count: cell classes, without background.

    Raises:
        ConfigError: settings out of range or that do not fit together.
    """
    backbone = build_backbone(settings, in_channels=in_channels)
    head = FcosHead(
        channels=settings.fpn_channels,
        class_count=class_count,
        level_count=len(backbone.levels),
        class_convs=settings.class_convs,
        box_convs=settings.box_convs,
        shared_convs=settings.shared_convs,
        norm=settings.head_norm,
        prior=settings.prior,
    )
    fcos = Fcos(
        head=head,
        strides=backbone.strides,
        assigning=settings.assigning,
        losses=settings.fcos_loss,
        decoding=settings.decoding,
        training_decoding=settings.proposals,
    )
    roi_heads = build_roi_heads(settings, backbone, class_count=class_count)
    return CenterMask(backbone=backbone, proposal_generator=fcos, roi_heads=roi_heads)


def build_roi_heads(settings: NetSettings, backbone: FPN, *, class_count: int) -> CenterRoiHeads:
    """The heads that draw and rate masks in boxes.

    Raises:
        ConfigError: a level to pool from is not in the pyramid.
    """
    if unknown := [level for level in settings.roi_levels if level not in backbone.levels]:
        got, need = f"model.roi_levels with {unknown}", f"some of the pyramid's levels {list(backbone.levels)}"
        raise ConfigError(explain(got=got, need=need, hint=f"model.roi_levels={list(settings.levels)}"))
    width = settings.fpn_channels
    mask_head = MaskHead(
        in_channels=width,
        width=width,
        class_count=class_count,
        conv_count=settings.mask_convs,
        attention=settings.mask_attention,
    )
    maskiou_head = None
    if settings.mask_iou:
        maskiou_head = MaskIouHead(
            in_channels=width, width=width, class_count=class_count, conv_count=settings.maskiou_convs
        )
    strides = {level: stride for level, stride in backbone.strides.items() if level in settings.roi_levels}
    return CenterRoiHeads(
        pool=RoiPool(strides=strides, criterion=settings.roi_criterion),
        mask_head=mask_head,
        maskiou_head=maskiou_head,
        sampling=settings.roi_sampling,
        losses=settings.mask_loss,
    )


def build_backbone(settings: NetSettings, *, in_channels: int) -> FPN:
    """The backbone with its pyramid."""
    bottom_up = build_bottom_up(
        settings.backbone,
        in_channels=in_channels,
        levels=settings.levels,
        norm=settings.norm,
        stem_stride=settings.stem_stride,
        deformable=settings.deformable,
        freeze_at=settings.freeze_at,
        stride_in_1x1=settings.stride_in_1x1,
    )
    return FPN(
        bottom_up=bottom_up,
        levels=settings.levels,
        out_channels=settings.fpn_channels,
        top_levels=settings.top_levels,
        fuse=settings.fuse,
    )


def build_semantic_branch(settings: NetSettings, backbone: FPN, *, classes: int) -> SemanticBranch | None:
    """The semantic branch on the levels made from the backbone, or None where there is to be none."""
    if settings.semantic is None:
        return None
    return SemanticBranch(
        strides={level: backbone.strides[level] for level in settings.levels},
        in_channels=settings.fpn_channels,
        width=settings.semantic.width,
        classes=classes,
        weight=settings.semantic.weight,
    )
