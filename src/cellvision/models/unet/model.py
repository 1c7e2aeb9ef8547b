"""The U-Net: semantic maps, or live/dead maps with a distance map that keeps touching cells apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cellvision.errors import check_choice
from cellvision.models.backbones.norms import explain_lone_values
from cellvision.models.build import MODELS
from cellvision.models.map_net import LossTerms, MapNet, are_counts, check_rules
from cellvision.models.preprocess import pad_to_stride
from cellvision.models.unet.attention import (
    ATTENTIONS,
    LOCAL_ATTENTIONS,
    AttentionGate,
    SelfAttention,
    build_block_attention,
)
from cellvision.models.unet.blocks import NORMS, DecoderBlock
from cellvision.models.unet.encoder import Encoder, TimmEncoder


@MODELS.register("unet")
class UNet(MapNet):
    """U-Net after Ronneberger et al. (2015), with batch normalisation, optional attention and any timm encoder.

    Takes images of any size: they are padded to the stride inside and the results cut back.

    Attributes:
        spec: see NetSpec. ``tiles`` is true for attention "none" and "gate" with norm "batch" and a local encoder.

    Example:
        >>> import torch
        >>> net = UNet(in_channels=2, classes=("background", "live", "dead"), kind="viability", widths=(4, 8)).eval()
        >>> {name: tuple(maps.shape) for name, maps in net(torch.zeros(1, 2, 31, 33)).items()}
        {'probabilities': (1, 3, 31, 33), 'distance': (1, 1, 31, 33)}
    """

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
        loss: LossTerms | None = None,
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
        super().__init__(in_channels=in_channels, classes=classes, kind=kind, activation=activation, dropout=dropout)
        _check_choices(attention=(attention, ATTENTIONS), norm=(norm, NORMS))
        _check_fit(widths, norm, encoder, pretrained)
        self.decided = {"pretrained": False}
        self.encoder = _build_encoder(encoder, pretrained, in_channels, widths, norm, attention)
        self.context = SelfAttention(widths[-1]) if attention == "self" else nn.Identity()
        self.decoder = _build_decoder(widths, norm, attention, self.encoder.has_skip)
        tiles = attention in LOCAL_ATTENTIONS and norm == "batch" and self.encoder.tiles
        self._build_head("unet", widths[0], loss, stride=2 ** (len(widths) - 1), tiles=tiles)

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


def _check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    for key, (value, known) in choices.items():
        check_choice(f"model.{key}", value, known)


def _check_fit(widths: Sequence[int], norm: str, encoder: str | None, pretrained: bool) -> None:
    need = "a whole number from 1 up for each of two or more strides"
    check_rules(
        (are_counts(widths, least=2), f"widths={widths!r}", need, "widths=[16,32,64,128]"),
        (
            norm == "batch" or not any(width % 2 for width in widths),
            f"widths={widths!r}",
            "even numbers for model.norm=group",
            "norm=batch",
        ),
        (isinstance(pretrained, bool), f"pretrained={pretrained!r}", "true or false", "pretrained=true"),
        (not pretrained or encoder is not None, "pretrained=true", "a timm encoder for it", "encoder=resnet18"),
    )
