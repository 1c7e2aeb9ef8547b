"""Weights of others into a net of ours: published detectors, backbones, and timm's or torchvision's encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, MissingExtraError, explain, read_first_line
from cellvision.models.backbones.bottom_up import list_bottom_ups
from cellvision.models.backbones.timm import TimmBottomUp
from cellvision.models.centermask2.weights.files import read_weights
from cellvision.models.centermask2.weights.fitting import PIXELS, load_weights
from cellvision.models.centermask2.weights.report import LoadReport

TIMM_WEIGHTS = {
    "vovnet19_dw": "ese_vovnet19b_dw.ra_in1k",
    "vovnet39": "ese_vovnet39b.ra_in1k",
    "vovnet57": "ese_vovnet57b.ra4_e3600_r256_in1k",
    **{f"resnet{depth}": f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)},
    "resnext50_32x4d": "resnext50_32x4d.tv_in1k",
    "resnext101_32x8d": "resnext101_32x8d.tv_in1k",
    "mobilenetv2": "mobilenetv2_100.ra_in1k",
}
"""{bottom-up: timm's name of ImageNet weights that fit it}; the others have none."""


def load_pretrained(
    net: nn.Module, source: str | Path | Mapping[str, Tensor], *, order: str | None = None
) -> LoadReport:
    """Load what fits from weights of others, and tell what did not.

    The file may hold a whole detector or a backbone only, under any prefix, with names as in ``match_names``. Tensors
    for another number of classes are skipped; a first convolution for another number of channels is adapted: for one
    channel, its weights are summed up (grey images were shown as three equal channels), for others they are repeated
    and scaled so that equal channels give the same as before.

    Args:
        net: a detector, or its pyramid or bottom-up alone; changed in place.
        source: a file (see ``read_weights``), or tensors by name.
        order: "bgr" or "rgb", as the weights know the channels of an image; the net is shown red first. None for what
            their names tell: red first where these are of timm or torchvision, else blue first, as all published
            detectors are.

    Raises:
        ConfigError: ``order`` is unknown, or "bgr" for weights of timm or torchvision.
        DataError: the file is unreadable or unsafe, nothing in it fits, a number in it is not finite, its weights are
            whole numbers, or ``order`` is "bgr" for weights that do not know three channels.
    """
    is_file = isinstance(source, str | Path)
    weights = read_weights(Path(source)) if is_file else dict(source)  # type: ignore[arg-type]
    return load_weights(net, weights, source=str(source) if is_file else "weights", order=order)


def load_timm_weights(
    bottom_up: nn.Module, source: str | Mapping[str, Tensor], *, order: str | None = None
) -> LoadReport:
    """Load an encoder of timm into a bottom-up: ImageNet weights for red, green and blue.

    Where timm's VoVNet lacks an excitation that ours has, it is set so that it changes next to nothing. ResNets fit
    with ``stride_in_1x1`` false only.

    Args:
        bottom_up: from ``build_bottom_up``; changed in place.
        source: timm's name of the weights, such as ``find_timm_weights`` gives, or tensors by name.
        order: as in ``load_pretrained``.

    Raises:
        ConfigError: timm does not know the name or cannot get the weights, or ``order`` is not theirs.
        DataError: nothing fits.
        MissingExtraError: timm is not installed.
    """
    if not isinstance(source, str):
        return load_weights(bottom_up, source, source="weights", order=order)
    encoder = _fetch(source, features_only=isinstance(bottom_up, TimmBottomUp))
    known = {key: encoder.pretrained_cfg.get(name) for key, name in zip(PIXELS, ("mean", "std"), strict=True)}
    pixels = {key: 255 * torch.tensor(value) for key, value in known.items() if value is not None}
    return load_weights(bottom_up, {**encoder.state_dict(), **pixels}, source=source, order=order)


def find_timm_weights(backbone: str) -> str:
    """Timm's name of ImageNet weights for a bottom-up; encoders of timm have their own.

    Raises:
        ConfigError: there are none for it.

    Example:
        >>> find_timm_weights("vovnet39")
        'ese_vovnet39b.ra_in1k'
    """
    if backbone in list_bottom_ups() and backbone not in TIMM_WEIGHTS:
        got = f"model.pretrained=true for model.backbone={backbone}"
        need = f"one of {', '.join(sorted(TIMM_WEIGHTS))} or an encoder of timm, or model.weights=FILE"
        raise ConfigError(explain(got=got, need=need, hint="model.pretrained=false"))
    return TIMM_WEIGHTS.get(backbone, backbone)


def _fetch(name: str, *, features_only: bool) -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", extra="train") from error
    try:
        return timm.create_model(name, pretrained=True, features_only=features_only)
    except Exception as error:  # timm and its download raise many kinds
        got = f"weights {name!r} of timm cannot be had ({type(error).__name__}: {read_first_line(error)[:120]})"
        need = "a name of timm.list_pretrained(), and the network or a cached copy"
        raise ConfigError(explain(got=got, need=need, hint="model.pretrained=false")) from error
