"""How a net begins: with which normalisation, and from which weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from cellvision.errors import ConfigError, explain
from cellvision.models.centermask2.config_file.beside import list_changes, list_untaken
from cellvision.models.centermask2.config_file.reader import read_config_file
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.settings import AUTO, NetSettings
from cellvision.models.centermask2.weights.files import read_content, read_weights
from cellvision.models.centermask2.weights.names import RED_FIRST
from cellvision.models.centermask2.weights.pretrained import find_timm_weights, load_pretrained, load_timm_weights
from cellvision.models.centermask2.weights.report import LoadReport

FROM_CHECKPOINT = "\0checkpoint"
"""In place of a file: the weights follow by ``load_state_dict``, as when a trained net is made again.

No file has such a name and no command line can hold it.
"""

PUBLISHED_MEAN = (123.675, 116.28, 103.53)
PUBLISHED_STD = (1.0, 1.0, 1.0)
"""Red, green, blue; what most published weights know their images by, unless a file says otherwise."""

IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_STD = (255 * 0.229, 255 * 0.224, 255 * 0.225)
"""The same for weights of torchvision and most of timm: on their own scale of 0..1 the factors without 255."""

_PIXELS = ("pixel_mean", "pixel_std")
_OFFSETS = "/conv_offset.weight"
"""How names of convolutions end that begin with a fitting value, 0: weights of a net that is not deformable fit too."""

_NO_BOTTOM_UP = re.compile(
    r"(^|\.)(fpn_(lateral|output)\d|top_block|proposal_generator|fcos_head|roi_heads|mask_head|maskiou_head|pixel_\w+)\b"
)


def choose_norm(settings: NetSettings, *, has_weights: bool, file: str | None = None) -> NetSettings:
    """The settings with a norm that is not "auto": frozen with weights to load, trained batch norm without.

    A ``file`` of weights for the heads or the pyramid alone has none for the norm, which then is trained.

    Raises:
        ConfigError: "frozen" or ``freeze_at`` without weights: the layers would stay what they are at the start, which
            is nothing.
        DataError, MissingExtraError: as ``read_weights``, where the norm is "auto".
    """
    if settings.freeze_at > 0 and not has_weights:
        got, need = f"model.freeze_at={settings.freeze_at} without weights", "model.weights or model.pretrained for it"
        raise ConfigError(explain(got=got, need=need, hint="model.freeze_at=0"))
    if settings.norm == AUTO:
        is_known = has_weights and (file in (None, FROM_CHECKPOINT) or _may_hold_bottom_up(str(file)))
        return replace(settings, norm="frozen" if is_known else "batch")
    if settings.norm == "frozen" and not has_weights:
        need = "model.weights or model.pretrained for it, or a norm that is trained"
        raise ConfigError(explain(got="model.norm=frozen without weights", need=need, hint="model.norm=batch"))
    return settings


def check_pixels(settings: NetSettings, *, in_channels: int) -> None:
    """Raise ConfigError for a mean or spread of the images of which it is not plain which channel has which number."""
    for key in _PIXELS:
        values = getattr(settings, key)
        if values is not None and len(values) not in (1, 3, in_channels):
            got = f"model.{key} of {len(values)} numbers for images of {in_channels} channels"
            need = "one number, or one per channel, or three of published weights"
            raise ConfigError(explain(got=got, need=need, hint=f"model.{key}=[{sum(values) / len(values):g}]"))


def read_settings(
    path: str, given: Mapping[str, Any], *, class_count: int, weights: str | None, pretrained: bool
) -> tuple[NetSettings, list[str]]:
    """The settings of a config file with some replaced by those given beside it.

    A file describes a net with the weights that it names. Frozen layers begin trained where nothing is loaded, and the
    file's mean and spread of the images count only for a file of weights: a random net would see numbers as large as
    the counts, and timm's weights have their own.

    Args:
        path: of the file.
        given: as in ``NetSettings.change``.
        class_count: cell classes of the data.
        weights: the file to start from, or None.
        pretrained: start from weights of timm.

    Returns:
        The settings, and lines on what is not as the file says.
    """
    file = read_config_file(path)
    said = base = NetSettings.from_config_file(file.net)
    if said.norm == "frozen":
        base = replace(base, norm=AUTO)
    if weights is None:
        base = replace(base, pixel_mean=None, pixel_std=None)
    if weights is None and not pretrained:
        base = replace(base, freeze_at=0)
    settings = choose_norm(base.change(given), has_weights=weights is not None or pretrained, file=weights)
    lines = list_changes(said.to_plain(), settings.to_plain())
    return settings, lines + list_untaken(file, class_count=class_count, has_weights=weights is not None)


def load_start(
    detector: CenterMask, settings: NetSettings, *, weights: str | None, pretrained: bool
) -> tuple[NetSettings, tuple[str, ...]]:
    """Load the weights to start from.

    Returns:
        The settings with the mean and spread of the images that the weights know, unless they had them already; and
        lines that tell how the net begins.

    Raises:
        DataError, ConfigError, MissingExtraError: as ``load_pretrained`` and ``load_timm_weights``.
        ConfigError: a convolution of the bottom-up gets no weights where it, or the norm behind it, is frozen.
    """
    if weights == FROM_CHECKPOINT:
        return settings, ()
    norm, order, own = f"norm {settings.norm}", settings.weights_order, None
    if weights is not None:
        own = _find_own_settings(weights)
        order = order or (None if own is None else "rgb")
        report = load_pretrained(detector, weights, order=order)
    elif pretrained:
        report = load_timm_weights(detector.backbone.bottom_up, find_timm_weights(settings.backbone), order=order)
    else:
        return settings, (f"random; {norm}, which is trained",)
    _refuse_random(detector.backbone.bottom_up, settings, report)
    settings, pixels = _choose_pixels(settings, report) if own is None else _take_pixels(settings, own)
    settings = _suit_channels(settings, detector.backbone.bottom_up)
    begun = [*report.to_lines(), *pixels, norm]
    if settings.semantic is not None:
        begun.append("semantic branch: random, for weights are loaded into the detector alone")
    return replace(settings, weights_order=report.order or order), tuple(begun)


def _may_hold_bottom_up(path: str) -> bool:
    """Whether a file holds any tensor that is not by its name one of another part of a detector."""
    return not all(map(_NO_BOTTOM_UP.search, read_weights(Path(path))))


def _refuse_random(bottom_up: nn.Module, settings: NetSettings, report: LoadReport) -> None:
    """Raise ConfigError for random convolutions that are frozen, or that no trained norm keeps in bounds."""
    begun = {name.rpartition("bottom_up.")[2] for name in (*report.loaded, *report.filled)}
    is_frozen = settings.norm == "frozen"
    fixed = [
        name
        for name, value in bottom_up.named_parameters()
        if value.ndim == 4 and not name.endswith(_OFFSETS) and (is_frozen or not value.requires_grad)
    ]
    if random := [name for name in fixed if name not in begun]:
        got = f"{len(random)} of {len(fixed)} layers of model.backbone={settings.backbone} not in {report.source}"
        keys = {"model.norm=frozen": is_frozen, f"model.freeze_at={settings.freeze_at}": settings.freeze_at > 0}
        cures = {"model.norm=batch": is_frozen, "model.freeze_at=0": settings.freeze_at > 0}
        need = f"weights of that backbone for {' with '.join(key for key, is_so in keys.items() if is_so)}"
        raise ConfigError(explain(got=got, need=need, hint=" ".join(key for key, is_so in cures.items() if is_so)))


def _suit_channels(settings: NetSettings, bottom_up: nn.Module) -> NetSettings:
    """The settings with mean and spread of images of other channels, as a file of weights tells them, averaged."""
    channels = next(value.shape[1] for value in bottom_up.parameters() if value.ndim == 4)
    found = {key: getattr(settings, key) for key in _PIXELS}
    others = {key: values for key, values in found.items() if values and len(values) not in (1, 3, channels)}
    averaged: dict[str, Any] = {key: (sum(values) / len(values),) for key, values in others.items()}
    return replace(settings, **averaged)


def _find_own_settings(path: str) -> Mapping[str, Any] | None:
    """The settings that a checkpoint of this library was trained with; None for files of others."""
    content = read_content(Path(path))
    record = content.get("cellvision") if isinstance(content, Mapping) else None
    net = record.get("net") if isinstance(record, Mapping) else None
    return net if isinstance(net, Mapping) and net.get("name") == "centermask2" else None


def _take_pixels(settings: NetSettings, own: Mapping[str, Any]) -> tuple[NetSettings, list[str]]:
    """The settings with the mean and spread of such a checkpoint, which may be none: images mapped to 0..1."""
    unset = [key for key in _PIXELS if getattr(settings, key) is None and own.get(key)]
    taken: dict[str, Any] = {key: tuple(own[key]) for key in unset}
    lines = [f"{key}=[{', '.join(f'{value:g}' for value in taken[key])}]: as the checkpoint tells" for key in unset]
    return replace(settings, **taken), lines


def _choose_pixels(settings: NetSettings, report: LoadReport) -> tuple[NetSettings, list[str]]:
    """The settings with mean and spread of the images that the weights know, and lines on those that were not set."""
    is_imagenet = report.scheme in RED_FIRST
    usual = {
        "pixel_mean": IMAGENET_MEAN if is_imagenet else PUBLISHED_MEAN,
        "pixel_std": IMAGENET_STD if is_imagenet else PUBLISHED_STD,
    }
    told = {key: getattr(report, key) for key in usual}
    chosen: dict[str, Any] = {key: told[key] or usual[key] for key in usual if getattr(settings, key) is None}
    lines = []
    for key, values in chosen.items():
        reason = f"as {report.source} tells" if told[key] else f"usual for {report.scheme} weights"
        lines.append(f"{key}=[{', '.join(f'{value:g}' for value in values)}]: {reason}")
    return replace(settings, **chosen), lines
