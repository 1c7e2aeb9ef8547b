"""One run of a net through all its layers, for tracing and counting: tensors only, and nothing depends on cells found.

A net whose ``logits`` do not pass through every layer registers its own way with ``run_layers``.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.detectron2.wrap import Detectron2Net

REGIONS = 50
"""Cells whose masks are drawn, where a net draws each on its own; as many as published nets keep of an image."""

_SIDE_PX = 32.0


@singledispatch
def run_layers(net: SegNet, image: Tensor, *, regions: int = REGIONS) -> tuple[Tensor, ...]:
    """The net's raw results, of every branch.

    Args:
        net: in the mode wanted.
        image: (1, C, H, W) raw counts.
        regions: cells whose masks are drawn.
    """
    return tuple(found for found in net.logits(image).values() if found.is_floating_point())


@run_layers.register
def _(net: CenterMask2, image: Tensor, *, regions: int = REGIONS) -> tuple[Tensor, ...]:
    pyramid = net.encode_images(image)
    outputs = net.detector.predict(pyramid)
    height, width = image.shape[-2:]
    at = torch.linspace(0, 1, regions, device=image.device).unsqueeze(1)
    corners = at * torch.tensor([width, height], device=image.device)
    boxes = torch.cat([corners, corners + _SIDE_PX], dim=1)
    images = torch.zeros(regions, dtype=torch.int64, device=image.device)
    heads = net.detector.roi_heads
    features = heads.pool(pyramid, boxes, images, torch.full_like(boxes[:, 0], height * width))
    masks = heads.mask_head(features)
    results = [*outputs.class_logits, *outputs.ltrb, *outputs.centreness_logits, masks]
    if heads.maskiou_head is not None:
        # What it sees of a mask is one channel whatever the width: nothing to follow from there.
        results.append(heads.maskiou_head(features, masks[:, :1].detach().sigmoid()))
    if net.semantic is not None:
        results.append(net.semantic(pyramid, size=(height, width)))
    return tuple(results)


@run_layers.register
def _(net: Detectron2Net, image: Tensor, *, regions: int = REGIONS) -> tuple[Tensor, ...]:
    got, need = "a net of detectron2 to prune", "a net whose layers are in this library"
    raise ConfigError(explain(got=got, need=need, hint="model=centermask2 with the same backbone"))
