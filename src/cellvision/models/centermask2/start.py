"""How a net begins: with which normalisation, and from which weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellvision.errors import ConfigError, explain
from cellvision.models.centermask2.config_file.beside import list_changes, list_untaken
from cellvision.models.centermask2.config_file.reader import read_config_file
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.settings import AUTO, NetSettings
from cellvision.models.centermask2.weights.files import read_content
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


def choose_norm(settings: NetSettings, *, has_weights: bool) -> NetSettings:
    """The settings with a norm that is not "auto": frozen with weights to load, trained batch norm without.

    Raises:
        ConfigError: "frozen" or ``freeze_at`` without weights: the layers would stay what they are at the start, which
            is nothing.
    """
    if settings.freeze_at > 0 and not has_weights:
        got, need = f"model.freeze_at={settings.freeze_at} without weights", "model.weights or model.pretrained for it"
        raise ConfigError(explain(got=got, need=need, hint="model.freeze_at=0"))
    if settings.norm == AUTO:
        return replace(settings, norm="frozen" if has_weights else "batch")
    if settings.norm == "frozen" and not has_weights:
        need = "model.weights or model.pretrained for it, or a norm that is trained"
        raise ConfigError(explain(got="model.norm=frozen without weights", need=need, hint="model.norm=batch"))
    return settings


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
    settings = choose_norm(base.change(given), has_weights=weights is not None or pretrained)
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
    settings, pixels = _choose_pixels(settings, report) if own is None else _take_pixels(settings, own)
    begun = [*report.to_lines(), *pixels, norm]
    if settings.semantic is not None:
        begun.append("semantic branch: random, for weights are loaded into the detector alone")
    return replace(settings, weights_order=report.order or order), tuple(begun)


def _find_own_settings(path: str) -> Mapping[str, Any] | None:
    """The settings that a checkpoint of this library was trained with; None for files of others."""
    content = read_content(Path(path))
    record = content.get("cellvision") if isinstance(content, Mapping) else None
    net = record.get("net") if isinstance(record, Mapping) else None
    return net if isinstance(net, Mapping) and net.get("name") == "centermask2" else None


def _take_pixels(settings: NetSettings, own: Mapping[str, Any]) -> tuple[NetSettings, list[str]]:
    """The settings with the mean and spread of such a checkpoint, which may be none: images mapped to 0..1."""
    unset = [key for key in ("pixel_mean", "pixel_std") if getattr(settings, key) is None and own.get(key)]
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
