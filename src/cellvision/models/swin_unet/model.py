"""The Swin-UNet: a U-Net whose levels are transformer blocks that attend within shifted windows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from cellvision.models.build import MODELS
from cellvision.models.map_net import LossTerms, MapNet, are_counts, check_rules, is_count
from cellvision.models.preprocess import pad_to_stride
from cellvision.models.swin_unet.stages import DecoderStage, PatchExpanding, PatchMerging, Stage


@MODELS.register("swin_unet")
class SwinUNet(MapNet):
    """Swin-UNet after Cao et al. (2021), of torchvision's Swin blocks (Liu et al. 2021).

    Takes images of any size: they are padded to the stride inside and the results cut back.

    Attention stays within windows, so that the net can be tiled; but where the windows lie depends on a pixel's place
    in the image. The same cell shifted by a few pixels is cut by other windows and gets other results. ``spec.stride``
    is therefore the deepest level's window in pixels, patch_size * 2**(levels - 1) * window: a shift by that much
    shifts every window of every level likewise. Tiles begin at its multiples, so that each lies on the image's own
    windows and gives the whole image's results; images are padded to its multiples, so that a small stride saves work
    on small ones.

    Attributes:
        spec: see NetSpec.
        strides: px per place of each level, finest first.

    Example:
        >>> import torch
        >>> net = SwinUNet(in_channels=2, classes=("background", "cell"), widths=(8, 16), depths=(2, 2), heads=(1, 2))
        >>> net.spec.stride, tuple(net.eval()(torch.zeros(1, 2, 31, 33))["probabilities"].shape)
        (16, (1, 2, 31, 33))
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: Sequence[str],
        kind: str = "semantic",
        patch_size: int = 2,
        widths: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (1, 2, 4, 8),
        window: int = 4,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        activation: str = "softmax",
        loss: LossTerms | None = None,
    ) -> None:
        """Build the net.

        Args:
            in_channels: image channels, >= 1.
            classes: background first; kind "viability" needs "live" and "dead" among them.
            kind: "semantic" (class probabilities) or "viability" (and a distance map).
            patch_size: edge in px of the squares that become the first map's places, >= 2.
            widths: channels of the levels, at stride patch_size, 2 * patch_size, ...; two or more.
            depths: blocks of each level, on the way down and again on the way up; the deepest has them once. Every
                second block has its windows shifted: an even number of them lets neighbouring windows meet.
            heads: of each level's attention; each divides its width.
            window: edge of a window in places of the map, >= 2.
            mlp_ratio: hidden channels of the blocks' two-layer nets, in widths.
            drop_path: share of images that the deepest blocks are skipped for in training, in [0, 1); 0 at the finest.
            dropout: share of channels dropped before the last layer, in [0, 1).
            activation: "softmax" (a pixel has one class) or "sigmoid" (foreground classes may overlap; P(background)
                is 1 - the largest of them, so that they need not sum to 1).
            loss: {term: {"weight": ..., arguments}}, see WeightedLoss; None for cross-entropy + Dice, each with
                weight 1 (+ distance with weight 5 for viability).

        Raises:
            ConfigError: an argument is unknown or out of range, or two do not fit together.
        """
        super().__init__(in_channels=in_channels, classes=classes, kind=kind, activation=activation, dropout=dropout)
        _check_levels(widths, depths, heads)
        _check_sizes(patch_size, window, mlp_ratio, drop_path)
        levels = len(widths)
        self.strides = tuple(patch_size * 2**level for level in range(levels))
        build = partial(_build_stages, widths, depths, heads, window=window, mlp_ratio=mlp_ratio, drop_path=drop_path)
        down, up = build(), build()
        self.embed = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], patch_size, stride=patch_size), LayerNorm2d(widths[0])
        )
        self.stages = nn.ModuleList(down)
        self.merges = nn.ModuleList(PatchMerging(widths[level], widths[level + 1]) for level in range(levels - 1))
        self.decoder = nn.ModuleList(
            DecoderStage(widths[level + 1], widths[level], up[level]) for level in reversed(range(levels - 1))
        )
        self.full = PatchExpanding(widths[0], widths[0], factor=patch_size)
        self._build_head("swin_unet", widths[0], loss, stride=self.strides[-1] * window, tiles=True)
        self.apply(_start_linear)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The decoder's maps "stride_1", "stride_p", "stride_2p", ... for patches of p px, finest first.

        Of the padded image: "stride_s" is (B, widths, H' / s, W' / s), H' and W' multiples of ``spec.stride``.
        """
        shown = pad_to_stride(self.normalize(images), self.spec.stride)
        maps = self.embed(shown.to(self.head.weight.dtype))  # float16 in a net made for export
        skips = []
        for stage, merge in zip(self.stages, self.merges, strict=False):
            skips.append(stage(maps))
            maps = merge(skips[-1])
        found = [self.stages[-1](maps)]
        for block, skip in zip(self.decoder, reversed(skips), strict=True):
            found.append(block(found[-1], skip))
        maps_by_stride = zip((1, *self.strides), (self.full(found[-1]), *reversed(found)), strict=True)
        return {f"stride_{stride}": each for stride, each in maps_by_stride}


def _build_stages(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    *,
    window: int,
    mlp_ratio: float,
    drop_path: float,
) -> list[Stage]:
    """One stage per level; the share of skipped images rises from 0 at the first block to ``drop_path`` at the last."""
    shares = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
    return [
        Stage(width, heads=count, window=window, mlp_ratio=mlp_ratio, drop_paths=list(islice(shares, depth)))
        for width, count, depth in zip(widths, heads, depths, strict=True)
    ]


def _start_linear(module: nn.Module) -> None:
    """The weights that Swin transformers start from; those of torch are too large for blocks that add up."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_levels(widths: Sequence[int], depths: Sequence[int], heads: Sequence[int]) -> None:
    need = "a whole number from 1 up for each of two or more levels"
    check_rules((are_counts(widths, least=2), f"widths={widths!r}", need, "widths=[32,64,128,256]"))
    need = f"a whole number from 1 up for each of the {len(widths)} levels of model.widths"
    for key, values in (("depths", depths), ("heads", heads)):
        fits = are_counts(values, least=2) and len(values) == len(widths)
        check_rules((fits, f"{key}={values!r}", need, f"{key}={[2] * len(widths)}"))
    divides = all(width % count == 0 for width, count in zip(widths, heads, strict=True))
    check_rules((divides, f"heads={heads!r}", f"divisors of model.widths={list(widths)}", f"heads={[1] * len(widths)}"))


def _check_sizes(patch_size: int, window: int, mlp_ratio: float, drop_path: float) -> None:
    check_rules(
        (
            is_count(patch_size) and patch_size >= 2,
            f"patch_size={patch_size!r}",
            "a whole number from 2 up",
            "patch_size=2",
        ),
        (is_count(window) and window >= 2, f"window={window!r}", "a whole number from 2 up", "window=4"),
        (0 < mlp_ratio <= 16, f"mlp_ratio={mlp_ratio!r}", "a number above 0 up to 16", "mlp_ratio=4"),
        (0 <= drop_path < 1, f"drop_path={drop_path!r}", "a number from 0 up and below 1", "drop_path=0.1"),
    )
