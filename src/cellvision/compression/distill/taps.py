"""What a net computes on its way to its losses, taken by hooks so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.centermask2.roi.mask_head import SpatialAttention
from cellvision.models.swin_unet.model import SwinUNet
from cellvision.models.unet.blocks import DecoderBlock
from cellvision.models.unet.model import UNet

Seen = dict[str, tuple[tuple[Any, ...], Any]]
"""Arguments and result of the latest call of each module, by the name of `list_points`."""


@singledispatch
def list_points(net: SegNet) -> dict[str, nn.Module]:
    """The modules of a net whose calls teach or are taught, by name.

    Raises:
        ConfigError: the net has none that are known.
    """
    got, need = f"distill with the net {net.spec.name!r}", "one whose layers are known: centermask2, swin_unet, unet"
    raise ConfigError(explain(got=got, need=need, hint="model=unet or model=centermask2"))


@list_points.register
def _(net: UNet) -> dict[str, nn.Module]:
    blocks = {f"stride_{2**level}": block for level, block in enumerate(reversed(net.decoder))}
    return {"head": net.head, **blocks}


@list_points.register
def _(net: SwinUNet) -> dict[str, nn.Module]:
    blocks = zip(net.strides, reversed(net.decoder), strict=False)
    return {"head": net.head, "stride_1": net.full, **{f"stride_{stride}": block for stride, block in blocks}}


@list_points.register
def _(net: CenterMask2) -> dict[str, nn.Module]:
    detector = net.detector
    heads = detector.roi_heads
    points: dict[str, nn.Module] = {
        "pyramid": detector.backbone,
        "fcos": detector.proposal_generator.fcos_head,
        "regions": heads.pool,
        "masks": heads.mask_head,
    }
    if isinstance(heads.mask_head.spatialAtt, SpatialAttention):
        points["attention"] = heads.mask_head.spatialAtt.sigmoid
    if heads.maskiou_head is not None:
        points["ratings"] = heads.maskiou_head
    return points


@singledispatch
def list_sources(net: SegNet) -> dict[int, str]:
    """{stride in px: name of a parameter whose first dimension is the channels of the feature map}, finest first.

    The parameter tells the width without running the net, and, when channels are pruned, which ones stay.
    """
    return {}


@list_sources.register
def _(net: UNet) -> dict[int, str]:
    names = []
    for name, block in net.decoder.named_children():
        assert isinstance(block, DecoderBlock)
        # The last normalisation of a block stands before its last ReLU.
        names.append(f"decoder.{name}.convolve.{len(block.convolve) - 2}.weight")
    return {2**level: name for level, name in enumerate(reversed(names))}


@list_sources.register
def _(net: SwinUNet) -> dict[int, str]:
    names = [f"decoder.{name}.reduce.weight" for name, _ in net.decoder.named_children()]
    return {1: "full.1.weight"} | dict(zip(net.strides, reversed(names), strict=False))


@list_sources.register
def _(net: CenterMask2) -> dict[int, str]:
    backbone = net.detector.backbone
    names = [f"fpn_output{level}" for level in backbone.inner] + [
        f"top_block.{name}" for name in backbone.top_block.names
    ]
    pairs = zip(backbone.strides.values(), names, strict=True)
    return {stride: f"detector.backbone.{name}.weight" for stride, name in pairs}


def watch(points: Mapping[str, nn.Module], seen: Seen) -> list[RemovableHandle]:
    """Let every call of the modules from now on be written to ``seen``; remove the handles to end it."""

    def note(name: str) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...], found: Any) -> None:
            seen[name] = (given, found)

        return keep

    return [module.register_forward_hook(note(name)) for name, module in points.items()]


class Taps:
    """Holds what the training forward of a net computed, until it is taken.

    The hooks are placed when a forward with gradients begins and are gone when ``take`` returns: after a step of
    training the net can be copied, cut, rounded and saved as if there were none, and modules put in the place of others
    are found. After gradients for importances, which nobody takes from here, they stay until the next such forward.
    The one hook that stays, on the net's normalisation, does nothing without gradients.
    """

    def __init__(self, net: SegNet) -> None:
        """Look at whether the net has known modules; raises ConfigError where not."""
        self._net, self._seen, self._handles = net, Seen(), list[RemovableHandle]()
        list_points(net)
        self._begin = net.get_submodule("normalize").register_forward_pre_hook(lambda *_: self._place())

    def _place(self) -> None:
        if torch.is_grad_enabled():
            self._remove()
            self._handles = watch(list_points(self._net), self._seen)

    def take(self) -> Seen:
        """What was seen since the latest forward with gradients began; nothing is kept."""
        seen = dict(self._seen)
        self._remove()
        return seen

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._seen.clear()

    def close(self) -> None:
        """Take all hooks off the net."""
        self._remove()
        self._begin.remove()
