"""Bottom-ups by name: the part of a detector that makes feature maps of falling size from an image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.models.backbones import mobilenetv2, resnet, vovnet
from cellvision.models.backbones.blocks import BottomUp
from cellvision.models.backbones.norms import NORMS
from cellvision.models.backbones.timm import TimmBottomUp

_LEVELS = (2, 3, 4, 5)
_OWN = (*vovnet.BODIES, *resnet.BODIES, "mobilenetv2")


def list_bottom_ups() -> list[str]:
    """Names of the library's own bottom-ups, sorted; ``build_bottom_up`` knows those of timm besides.

    Example:
        >>> "vovnet39" in list_bottom_ups()
        True
    """
    return sorted(_OWN)


def build_bottom_up(
    name: str,
    *,
    in_channels: int,
    levels: Collection[int],
    norm: str,
    stem_stride: int = 4,
    deformable: bool = False,
    freeze_at: int = 0,
    stride_in_1x1: bool = False,
) -> BottomUp:
    """A module that gives {level: feature map} of an image, finest first, for the levels asked for.

    Level i is the image's size divided by 2**i, rounded up, or twice that for ``stem_stride`` 2. The module has
    ``widths`` ({level: channels}), ``tiles`` (False where it sees the whole image) and ``stem_stride``.

    Args:
        name: one of ``list_bottom_ups()``, or of ``timm.list_models()``.
        in_channels: of the image, >= 1.
        levels: some of 2, 3, 4, 5, or of those that the encoder of timm has.
        norm: "frozen", "batch", "sync" or "group"; see ``build_norm``. Encoders of timm keep their kind: here it says
            what becomes of their batch normalisations, and "group" is refused.
        stem_stride: stride of level 2: 4, or 2 for cells of a few pixels, where the first convolution skips none.
            Weights fit both.
        deformable: the 3 px convolutions of VoVNet's stages 3 to 5 look where the image tells them to.
        freeze_at: how many parts, from the image on, are not trained: 1 the stem, 2 also level 2, up to 5.
        stride_in_1x1: where a bottleneck of ResNet halves the map: in its first convolution, as the published R-50 and
            R-101 of CenterMask2 want it, or in its second, as torchvision's weights do. Others have no such choice.

    Raises:
        ConfigError: an unknown name or norm, a level that is not there, or a number out of range.
        MissingExtraError: another name than those of this library without timm installed.

    Example:
        >>> bottom_up = build_bottom_up("mobilenetv2", in_channels=2, levels=(3, 4), norm="batch", stem_stride=2)
        >>> bottom_up.widths, bottom_up.tiles, bottom_up.stem_stride
        ({3: 32, 4: 96}, True, 2)
    """
    check_choice("model.norm", norm, NORMS)
    _check(name, in_channels, levels, stem_stride, deformable, freeze_at)
    common: dict[str, Any] = {
        "in_channels": in_channels,
        "levels": levels,
        "norm": norm,
        "stem_stride": stem_stride,
        "freeze_at": freeze_at,
    }
    if name in vovnet.BODIES:
        return vovnet.VoVNet(body=vovnet.BODIES[name], deformable=deformable, **common)
    if name in resnet.BODIES:
        return resnet.ResNet(body=resnet.BODIES[name], stride_in_1x1=stride_in_1x1, **common)
    if name == "mobilenetv2":
        return mobilenetv2.MobileNetV2(**common)
    return TimmBottomUp(encoder=name, others=list_bottom_ups(), **common)


def _check(
    name: str, in_channels: int, levels: Collection[int], stem_stride: int, deformable: bool, freeze_at: int
) -> None:
    """Raise ConfigError for what no bottom-up can be made of; encoders of timm check their levels themselves."""
    is_vovnet = name in vovnet.BODIES and not vovnet.BODIES[name].depthwise
    known = _LEVELS if name in _OWN else range(1, 8)
    for holds, got, need, hint in (
        (in_channels >= 1, f"in_channels={in_channels}", "a whole number from 1 up", "in_channels=1"),
        (
            len(levels) > 0 and set(levels) <= set(known),
            f"levels={list(levels)}",
            f"some of {list(known)} for {name}",
            "levels=[3,4,5]",
        ),
        (stem_stride in (2, 4), f"stem_stride={stem_stride}", "4, or 2 for maps of twice the size", "stem_stride=4"),
        (
            is_vovnet or not deformable,
            f"deformable=true with {name}",
            "a VoVNet that is not depthwise",
            "backbone=vovnet39",
        ),
        (freeze_at in range(6), f"freeze_at={freeze_at}", "0 (nothing), 1 (the stem) up to 5", "freeze_at=0"),
    ):
        if not holds:
            raise ConfigError(explain(got=f"model.{got}", need=need, hint=f"model.{hint}"))
