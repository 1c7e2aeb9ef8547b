"""The U-Net: semantic maps, or live/dead maps with a distance map that keeps touching cells apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, check_choice, explain
from cellvision.models.backbones.norms import explain_lone_values
from cellvision.models.base import MAP_KINDS, NetSpec, SegNet
from cellvision.models.build import MODELS
from cellvision.models.preprocess import Normalize, pad_to_stride
from cellvision.models.unet.attention import (
    ATTENTIONS,
    LOCAL_ATTENTIONS,
    AttentionGate,
    SelfAttention,
    build_block_attention,
)
from cellvision.models.unet.blocks import NORMS, DecoderBlock
from cellvision.models.unet.encoder import Encoder, TimmEncoder
from cellvision.ops.loss_term import ACTIVATIONS
from cellvision.ops.losses import WeightedLoss
from cellvision.types import DataStats, Targets

_Terms = Mapping[str, Mapping[str, Any] | None]


@MODELS.register("unet")
class UNet(SegNet):
    """U-Net after Ronneberger et al. (2015), with batch normalisation, optional attention and any timm encoder.

    Takes images of any size: they are padded to the stride inside and the results cut back.

    Attributes:
        spec: see NetSpec. ``tiles`` is true for attention "none" and "gate" with norm "batch" and a local encoder.
        config: plain data for ``build_model``, which sets it.

    Example:
        >>> net = UNet(in_channels=2, classes=("background", "live", "dead"), kind="viability", widths=(4, 8)).eval()
        >>> {name: tuple(maps.shape) for name, maps in net(torch.zeros(1, 2, 31, 33)).items()}
        {'probabilities': (1, 3, 31, 33), 'distance': (1, 1, 31, 33)}
    """

    config: dict[str, Any]

    def __init__(
        self,
        *,
        in_channels: int,
        classes: Sequence[str],
        kind: str = "semantic",
        widths: Sequence[int] = (16, 32, 64, 128),
        attention: str = "none",
        encoder: str | None = None,
        pretrained: bool = False,
        norm: str = "batch",
        dropout: float = 0.0,
        activation: str = "softmax",
        loss: _Terms | None = None,
    ) -> None:
        """Build the net.

        Args:
            in_channels: image channels, >= 1.
            classes: background first; kind "viability" needs "live" and "dead" among them.
            kind: "semantic" (class probabilities) or "viability" (and a distance map).
            widths: channels at stride 1, 2, 4, ...; two or more; one more halves the resolution once more.
            attention: "none", "gate" (on the skips), "se" or "cbam" (on every block), "self" (at the deepest level).
            encoder: None for the U-Net's own, or the name of a timm encoder, used down to the stride of the last of
                ``widths``; "se" and "cbam" then act in the decoder only.
            pretrained: start a timm encoder from downloaded weights.
            norm: "batch", or "group" for batches of one or two.
            dropout: share of channels dropped at the deepest level and before the last layer, in [0, 1).
            activation: "softmax" (a pixel has one class) or "sigmoid" (foreground classes may overlap; P(background)
                is 1 - the largest of them, so that they need not sum to 1).
            loss: {term: {"weight": ..., arguments}}, see WeightedLoss; None for cross-entropy + Dice, each with
                weight 1 (+ distance with weight 5 for viability).

        Raises:
            ConfigError: an argument is unknown or out of range, or two do not fit together.
        """
        super().__init__()
        _check_plain(in_channels, classes, widths, dropout)
        _check_choices(kind=(kind, MAP_KINDS), attention=(attention, ATTENTIONS), norm=(norm, NORMS))
        _check_choices(activation=(activation, ACTIVATIONS))
        _check_fit(kind, classes, widths, norm, activation, encoder, pretrained)
        self.decided = {"pretrained": False}
        self.activation = activation
        self.has_distance = kind == "viability"
        self.class_outputs = len(classes) - (activation == "sigmoid")
        self.normalize = Normalize(in_channels)
        self.encoder = _build_encoder(encoder, pretrained, in_channels, widths, norm, attention)
        self.context = SelfAttention(widths[-1]) if attention == "self" else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.decoder = _build_decoder(widths, norm, attention, self.encoder.has_skip)
        self.head = nn.Conv2d(widths[0], self.class_outputs + self.has_distance, 1)
        self.loss = _build_loss(loss, len(classes), activation, self.has_distance)
        self.spec = NetSpec(
            name="unet",
            kind=kind,
            in_channels=in_channels,
            classes=tuple(classes),
            stride=2 ** (len(widths) - 1),
            outputs=("probabilities", "distance") if self.has_distance else ("probabilities",),
            tiles=attention in LOCAL_ATTENTIONS and norm == "batch" and self.encoder.tiles,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Probabilities, and for viability distances; see SegNet."""
        return self.decode(self.logits(images))

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """What ``decode`` and ``losses_from`` start from, so that validation runs the net once for both.

        Args:
            images: (B, C, H, W) raw counts.

        Returns:
            "classes" (B, K, H, W), under sigmoid (B, K-1, H, W); for viability also "distance" (B, 1, H, W).
        """
        height, width = images.shape[-2:]
        finest = next(iter(self.features(images).values()))
        found = self.head(self.dropout(finest))[..., :height, :width]
        logits = {"classes": found[:, : self.class_outputs]}
        if self.has_distance:
            logits["distance"] = found[:, self.class_outputs :]
        return logits

    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results of ``forward`` from those of ``logits``: float32 in 0..1."""
        classes = logits["classes"].float()
        if self.activation == "softmax":
            results = {"probabilities": _softmax(classes)}
        else:
            foreground = classes.sigmoid()
            results = {"probabilities": torch.cat([1 - foreground.amax(1, keepdim=True), foreground], dim=1)}
        if self.has_distance:
            results["distance"] = logits["distance"].float().sigmoid()
        return results

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses, already weighted."""
        return self.losses_from(self.logits(images), targets)

    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The same, from the results of ``logits``."""
        return self.loss(logits, targets)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The decoder's maps "stride_1", "stride_2", ... down to the deepest level, finest first.

        Of the padded image: "stride_s" is (B, widths, H' / s, W' / s), H' and W' multiples of ``spec.stride``.
        """
        with explain_lone_values():
            shown = pad_to_stride(self.normalize(images), self.spec.stride)
            *skips, deepest = self.encoder(shown.to(self.head.weight.dtype))  # float16 in a net made for export
        maps = [self.dropout(self.context(deepest))]
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            maps.append(block(maps[-1], skip))
        return {f"stride_{2**level}": found for level, found in enumerate(reversed(maps))}

    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation and automatic class weights from the training data."""
        self.normalize.set_statistics(stats)
        self.loss.set_statistics(stats.class_pixels)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the channels, in single steps: as one node ONNX Runtime takes six times as long over that axis."""
    exponentials = (logits - logits.amax(1, keepdim=True)).exp()
    return exponentials / exponentials.sum(1, keepdim=True)


def _build_encoder(
    encoder: str | None, pretrained: bool, in_channels: int, widths: Sequence[int], norm: str, attention: str
) -> Encoder | TimmEncoder:
    if encoder is None:
        return Encoder(in_channels=in_channels, widths=widths, norm=norm, attention=attention)
    return TimmEncoder(encoder=encoder, pretrained=pretrained, in_channels=in_channels, widths=widths, norm=norm)


def _build_decoder(widths: Sequence[int], norm: str, attention: str, has_skip: Sequence[bool]) -> nn.ModuleList:
    """The blocks from the deepest level up, the last at full resolution."""
    return nn.ModuleList(
        DecoderBlock(
            widths[level + 1],
            widths[level],
            norm=norm,
            has_skip=has_skip[level],
            gate=AttentionGate(widths[level]) if attention == "gate" and has_skip[level] else None,
            attention=build_block_attention(attention, widths[level]),
        )
        for level in reversed(range(len(widths) - 1))
    )


def _build_loss(given: _Terms | None, class_count: int, activation: str, has_distance: bool) -> WeightedLoss:
    """The loss from its terms, or cross-entropy + Dice (+ distance) where none are given."""
    default: _Terms = {"ce" if activation == "softmax" else "bce": {"weight": 1.0}, "dice": {"weight": 1.0}}
    if has_distance:
        default = {**default, "distance": {"weight": 5.0}}
    terms = default if given is None else given
    return WeightedLoss(terms, class_count=class_count, activation=activation, has_distance=has_distance)


def _check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    for key, (value, known) in choices.items():
        check_choice(f"model.{key}", value, known)


def _check_plain(in_channels: int, classes: Sequence[str], widths: Sequence[int], dropout: float) -> None:
    names_fit = not isinstance(classes, str) and len(set(classes)) == len(classes) >= 2
    widths_fit = not isinstance(widths, int | str) and len(widths) >= 2 and all(map(_is_count, widths))
    count = "whole number from 1 up"
    _check_rules(
        (_is_count(in_channels), f"in_channels={in_channels!r}", f"a {count}", "in_channels=1"),
        (
            names_fit,
            f"classes={classes!r}",
            "two or more different names, background first",
            "classes=[background,cell]",
        ),
        (widths_fit, f"widths={widths!r}", f"a {count} for each of two or more strides", "widths=[16,32,64,128]"),
        (0 <= dropout < 1, f"dropout={dropout!r}", "a number from 0 up and below 1", "dropout=0.1"),
    )


def _check_fit(
    kind: str,
    classes: Sequence[str],
    widths: Sequence[int],
    norm: str,
    activation: str,
    encoder: str | None,
    pretrained: bool,
) -> None:
    has_live_dead = {"live", "dead"} <= set(classes)
    is_even = not any(width % 2 for width in widths)
    viable = "for model.kind=viability"
    _check_rules(
        (
            kind == "semantic" or has_live_dead,
            f"classes={classes!r}",
            f"live and dead among them {viable}",
            "kind=semantic",
        ),
        (
            kind == "semantic" or activation == "softmax",
            f"activation={activation}",
            f"softmax {viable}",
            "kind=semantic",
        ),
        (norm == "batch" or is_even, f"widths={widths!r}", "even numbers for model.norm=group", "norm=batch"),
        (not pretrained or encoder is not None, "pretrained=true", "a timm encoder for it", "encoder=resnet18"),
    )


def _check_rules(*rules: tuple[bool, str, str, str]) -> None:
    """Raise ConfigError for the first rule (holds, got, need, hint) that does not hold."""
    for holds, got, need, hint in rules:
        if not holds:
            raise ConfigError(explain(got=f"model.{got}", need=need, hint=f"model.{hint}"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
