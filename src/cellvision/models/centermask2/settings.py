"""All that can be set of a CenterMask2 net, as plain values.

Every default is that of the published full net, but for the number of cells kept: 50 an image would be no use here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from cellvision.checks import check_count, check_numbers, check_range, check_switch, refuse
from cellvision.errors import ConfigError, check_choice, explain, unknown_name
from cellvision.models.backbones.norms import NORMS
from cellvision.models.centermask2.checks import check_levels
from cellvision.models.centermask2.config_file.settings import CenterMaskSettings
from cellvision.models.centermask2.options import (
    FcosAssigning,
    FcosDecoding,
    FcosLosses,
    MaskLosses,
    ProposalDecoding,
    RoiSampling,
    Semantic,
)
from cellvision.models.centermask2.weights.fitting import ORDERS

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class NetSettings:
    """Structure and options of a net.

    Attributes:
        backbone: a name of ``list_bottom_ups()`` or of ``timm.list_models()``.
        levels: pyramid levels made from the backbone, finest first, each of stride 2**level. 2 serves small cells.
        top_levels: 0, 1 or 2 coarser levels on top, for large cells.
        fpn_channels: of every level and of the heads; 128 in the lite nets.
        fuse: "sum" or "avg" of a level and the enlarged coarser one.
        stem_stride: 4, or 2 for maps of twice the size: every stride is halved.
        norm: of the backbone: "frozen", "batch", "sync", "group", or "auto", which is frozen with loaded weights and
            batch without; that is also what a config file's "FrozenBN" means.
        freeze_at: how many parts of the backbone, from the image on, are not trained; only with loaded weights.
        stride_in_1x1: ResNet: where a bottleneck halves the map, see ``build_bottom_up``.
        deformable: VoVNet: deformable convolutions in stages 3 to 5.
        class_convs, box_convs, shared_convs: of the FCOS head; 2, 2 and 0 in the lite nets.
        head_norm: "group" or "none", in the FCOS head.
        prior: class probability that an untrained net gives everywhere.
        roi_levels: those that masks are pooled from.
        roi_criterion: "ratio" of box and image area, or "area" of the box alone, chooses the level.
        mask_convs, mask_attention: of the mask head; 2 convolutions in the lite nets.
        mask_iou, maskiou_convs: whether masks are rated, and by how many convolutions; 2 in the lite nets.
        pixel_mean, pixel_std: one per channel, on the scale where 0 is the dark and 255 the bright end of the training
            images, or that of the counts under data.normalization=none; the net sees (value - mean) / std. None: it
            sees what data.normalization says.
        weights_order: "bgr" or "rgb": order of channels that the weights to start from know. None: as their names tell,
            "rgb" for those of timm and torchvision and "bgr" for the others, as all published detectors are.
        assigning, fcos_loss, decoding, proposals, roi_sampling, mask_loss: see the classes in ``options``;
            ``proposals`` are the boxes that the mask branch learns from.
        semantic: see Semantic; None for no such branch.
    """

    backbone: str = "vovnet39"
    levels: tuple[int, ...] = (3, 4, 5)
    top_levels: int = 2
    fpn_channels: int = 256
    fuse: str = "sum"
    stem_stride: int = 4
    norm: str = AUTO
    freeze_at: int = 0
    stride_in_1x1: bool = False
    deformable: bool = False
    class_convs: int = 4
    box_convs: int = 4
    shared_convs: int = 0
    head_norm: str = "group"
    prior: float = 0.01
    roi_levels: tuple[int, ...] = (3, 4, 5)
    roi_criterion: str = "ratio"
    mask_convs: int = 4
    mask_attention: bool = True
    mask_iou: bool = True
    maskiou_convs: int = 4
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    weights_order: str | None = None
    assigning: FcosAssigning = field(default_factory=FcosAssigning)
    fcos_loss: FcosLosses = field(default_factory=FcosLosses)
    decoding: FcosDecoding = field(default_factory=lambda: FcosDecoding(post_nms=1000))
    proposals: ProposalDecoding = field(default_factory=lambda: ProposalDecoding(post_nms=100))
    roi_sampling: RoiSampling = field(default_factory=RoiSampling)
    mask_loss: MaskLosses = field(default_factory=MaskLosses)
    semantic: Semantic | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for what no part of the net looks at before it computes with it."""
        check_choice("model.norm", self.norm, (AUTO, *NORMS))
        if self.weights_order is not None:
            check_choice("model.weights_order", self.weights_order, ORDERS)
        if not isinstance(self.backbone, str):
            raise refuse("model.backbone", self.backbone, need="a name", example="vovnet39")
        for name in ("levels", "roi_levels"):
            check_levels(f"model.{name}", getattr(self, name))
        for name in ("stride_in_1x1", "deformable", "mask_attention", "mask_iou"):
            check_switch(f"model.{name}", getattr(self, name))
        for name in ("class_convs", "box_convs", "shared_convs", "mask_convs"):
            check_count(f"model.{name}", getattr(self, name), low=0, example=4)
        check_count("model.maskiou_convs", self.maskiou_convs, example=4)
        check_count("model.fpn_channels", self.fpn_channels, example=256)
        check_range("model.prior", self.prior, above=0, below=1, example=0.01)
        if self.pixel_mean is not None:
            check_numbers("model.pixel_mean", self.pixel_mean, what="one per channel")
        if self.pixel_std is not None:
            check_numbers("model.pixel_std", self.pixel_std, above=0, what="one per channel")

    def change(self, given: Mapping[str, Any]) -> NetSettings:
        """These settings with some replaced by plain values; None leaves one as it is, as do keys missing in a group.

        Raises:
            ConfigError: an unknown key, or a value that its class does not take.
        """
        names = [f.name for f in fields(self)]
        changed: dict[str, Any] = {}
        for key, value in given.items():
            if key not in names:
                known = [f"model.{name}" for name in names]
                raise ConfigError(unknown_name("setting of centermask2", f"model.{key}", known))
            if value is None:
                continue
            group = Semantic() if key == "semantic" and self.semantic is None else getattr(self, key)
            is_group = hasattr(group, "__dataclass_fields__")
            changed[key] = _change_group(group, value) if is_group else _to_tuple(value)
        return replace(self, **changed)

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists, from which ``NetSettings().change`` makes the same again."""
        return {key: _to_list(value) for key, value in asdict(self).items()}

    @classmethod
    def from_config_file(cls, given: CenterMaskSettings) -> NetSettings:
        """Those of a detectron2-style file.

        "BGR" is what such a file says where nobody chose anything, and leaves the order to the weights.
        """
        same = {f.name for f in fields(cls)} & {f.name for f in fields(given)}
        suppression: dict[str, Any] = {
            "nms_iou": given.nms_iou,
            "threshold_with_centreness": given.threshold_with_centreness,
        }
        return cls(
            **{name: getattr(given, name) for name in same if name not in ("deformable", "pixel_mean", "pixel_std")},
            fpn_channels=given.out_channels,
            shared_convs=given.share_convs,
            weights_order="rgb" if given.channel_order == "RGB" else None,
            deformable=any(given.deformable),
            pixel_mean=_in_rgb(given.pixel_mean, given.channel_order),
            pixel_std=_in_rgb(given.pixel_std, given.channel_order),
            assigning=FcosAssigning(
                sizes_of_interest=given.sizes_of_interest, centre_sampling=given.centre_sampling, radius=given.radius
            ),
            fcos_loss=FcosLosses(alpha=given.focal_alpha, gamma=given.focal_gamma, box_loss=given.box_loss),
            decoding=FcosDecoding(
                score_threshold=given.score_threshold, pre_nms=given.pre_nms, post_nms=given.post_nms, **suppression
            ),
            proposals=ProposalDecoding(
                score_threshold=given.score_threshold_train,
                pre_nms=given.pre_nms_train,
                post_nms=given.post_nms_train,
                **suppression,
            ),
            roi_sampling=RoiSampling(
                per_image=given.roi_per_image,
                positive_fraction=given.roi_positive_fraction,
                iou=given.roi_iou,
                append_truth=given.roi_append_truth,
            ),
            mask_loss=MaskLosses(maskiou_weight=given.maskiou_weight),
        )


def _change_group(group: Any, given: Any) -> Any:
    """A group of options with some keys replaced."""
    names = [f"{group.key}.{f.name}" for f in fields(group)]
    if not isinstance(given, Mapping):
        raise ConfigError(explain(got=f"{group.key}={given!r}", need="keys with values", hint=f"{names[0]}=..."))
    for name in given:
        if f"{group.key}.{name}" not in names:
            raise ConfigError(unknown_name(f"setting of {group.key}", f"{group.key}.{name}", names))
    return replace(group, **{name: _to_tuple(value) for name, value in given.items() if value is not None})


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _to_list(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_list(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _in_rgb(values: tuple[float, ...], order: str) -> tuple[float, ...]:
    return values[::-1] if order == "BGR" else values
