"""How a net begins: with which normalisation, and from which weights."""

from __future__ import annotations

from dataclasses import replace

from cellvision.errors import ConfigError, explain
from cellvision.models.centermask2.checkpoint import find_timm_weights, load_pretrained, load_timm_weights
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.settings import AUTO, NetSettings

FROM_CHECKPOINT = "checkpoint"
"""In place of a file: the weights follow by ``load_state_dict``, as when a trained net is made again."""

PUBLISHED_MEAN = (123.675, 116.28, 103.53)
PUBLISHED_STD = (1.0, 1.0, 1.0)
"""Red, green, blue; what most published weights know their images by, unless a file says otherwise."""


def choose_norm(settings: NetSettings, *, has_weights: bool) -> NetSettings:
    """The settings with a norm that is not "auto": frozen with weights to load, trained batch norm without.

    Raises:
        ConfigError: "frozen" without weights: the layers would stay what they are at the start, which is nothing.
    """
    if settings.norm == AUTO:
        return replace(settings, norm="frozen" if has_weights else "batch")
    if settings.norm == "frozen" and not has_weights:
        need = "model.weights or model.pretrained for it, or a norm that is trained"
        raise ConfigError(explain(got="model.norm=frozen without weights", need=need, hint="model.norm=batch"))
    return settings


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
    norm = f"norm {settings.norm}"
    if weights is not None:
        report = load_pretrained(detector, weights, flip_channels=settings.weights_order == "bgr")
    elif pretrained:
        report = load_timm_weights(detector.backbone.bottom_up, find_timm_weights(settings.backbone))
    else:
        return settings, (f"random; {norm}, which is trained",)
    if settings.pixel_mean is None:
        settings = replace(settings, pixel_mean=report.pixel_mean or PUBLISHED_MEAN)
    if settings.pixel_std is None:
        settings = replace(settings, pixel_std=report.pixel_std or PUBLISHED_STD)
    return settings, (*report.to_lines(), norm)
