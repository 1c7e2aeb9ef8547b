"""The parts of the detector put together as its settings say."""

from __future__ import annotations

from collections.abc import Mapping

from cellvision.errors import ConfigError, explain
from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.fcos.branch import Fcos
from cellvision.models.centermask2.fcos.head import FcosHead
from cellvision.models.centermask2.roi.heads import CenterRoiHeads
from cellvision.models.centermask2.roi.mask_head import MaskHead
from cellvision.models.centermask2.roi.maskiou_head import MaskIouHead
from cellvision.models.centermask2.roi.pool import RoiPool
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
    return CenterMask(
        backbone=backbone,
        proposal_generator=build_fcos(settings, backbone.strides, class_count=class_count),
        roi_heads=build_roi_heads(settings, backbone.strides, class_count=class_count),
    )


def build_backbone(settings: NetSettings, *, in_channels: int, kind: type[FPN] = FPN) -> FPN:
    """The backbone with its pyramid, of class ``kind``, as the other two parts are of theirs."""
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
    return kind(
        bottom_up=bottom_up,
        levels=settings.levels,
        out_channels=settings.fpn_channels,
        top_levels=settings.top_levels,
        fuse=settings.fuse,
    )


def build_fcos(settings: NetSettings, strides: Mapping[int, int], *, class_count: int, kind: type[Fcos] = Fcos) -> Fcos:
    """The part that finds boxes, for the {level: px} of the whole pyramid, finest first."""
    head = FcosHead(
        channels=settings.fpn_channels,
        class_count=class_count,
        level_count=len(strides),
        class_convs=settings.class_convs,
        box_convs=settings.box_convs,
        shared_convs=settings.shared_convs,
        norm=settings.head_norm,
        prior=settings.prior,
    )
    return kind(
        head=head,
        strides=strides,
        assigning=settings.assigning,
        losses=settings.fcos_loss,
        decoding=settings.decoding,
        training_decoding=settings.proposals,
    )


def build_roi_heads(
    settings: NetSettings, strides: Mapping[int, int], *, class_count: int, kind: type[CenterRoiHeads] = CenterRoiHeads
) -> CenterRoiHeads:
    """The heads that draw and rate masks in boxes; ``strides`` as in ``build_fcos``.

    Raises:
        ConfigError: a level to pool from is not in the pyramid.
    """
    if unknown := [level for level in settings.roi_levels if level not in strides]:
        got, need = f"model.roi_levels with {unknown}", f"some of the pyramid's levels {list(strides)}"
        raise ConfigError(explain(got=got, need=need, hint=f"model.roi_levels={list(settings.levels)}"))
    width = settings.fpn_channels
    sizes = {"in_channels": width, "width": width, "class_count": class_count}
    pooled = {level: stride for level, stride in strides.items() if level in settings.roi_levels}
    return kind(
        pool=RoiPool(strides=pooled, criterion=settings.roi_criterion),
        mask_head=MaskHead(**sizes, conv_count=settings.mask_convs, attention=settings.mask_attention),
        maskiou_head=MaskIouHead(**sizes, conv_count=settings.maskiou_convs) if settings.mask_iou else None,
        sampling=settings.roi_sampling,
        losses=settings.mask_loss,
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
