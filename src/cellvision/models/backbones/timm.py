"""Any convolutional encoder of timm as {level: feature map}."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, MissingExtraError, explain
from cellvision.models.build import BACKBONES


@BACKBONES.register("timm")
class TimmBackbone(nn.Module):
    """Feature maps of a timm encoder by level; level i has stride 2**i and is of ceil(size / 2**i) px.

    Layers behind the deepest level asked for are left out. What timm declares of an encoder is not taken on trust:
    it is run once on a small image, which also shows whether it sees the whole image at once.

    Attributes:
        widths: channels of each level from 1 up that the encoder has; one that begins at stride 4 has no level 1.
        tiles: False where the encoder sees the whole image (squeeze-and-excitation, attention).
    """

    def __init__(self, *, encoder: str, in_channels: int, max_level: int, pretrained: bool = False) -> None:
        """Make the encoder.

        Args:
            encoder: a name that ``timm.list_models()`` knows, with or without the tag of its weights.
            in_channels: image channels; pretrained first layers are adapted to them by timm.
            max_level: the deepest level needed, >= 1.
            pretrained: start from downloaded weights.

        Raises:
            ConfigError: the name is unknown, the encoder lacks that level, takes images of one size only, or its
                weights cannot be had.
            MissingExtraError: timm is not installed.
        """
        super().__init__()
        strides = _create(encoder, in_channels=in_channels).feature_info.reduction()
        chosen = _choose(encoder, strides, max_level)
        self.levels = tuple(chosen)
        indices = list(chosen.values())
        self.encoder = _create(encoder, pretrained=pretrained, in_channels=in_channels, out_indices=indices)
        self.widths = dict(zip(self.levels, self.encoder.feature_info.channels(), strict=True))
        self.tiles = self._probe(encoder, in_channels)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, widths[level], H / 2**level, W / 2**level)} of (B, C, H, W), finest first."""
        return dict(zip(self.levels, self.encoder(images), strict=True))

    def _probe(self, name: str, in_channels: int) -> bool:
        """Check shapes, drop unused layers, and tell whether the near end is blind to a change at the far end."""
        height, width = 2 ** self.levels[-1], 1024
        strips = torch.rand(2, in_channels, height, width, generator=torch.Generator().manual_seed(0))
        strips[1, :, :, :-64] = strips[0, :, :, :-64]
        strips[1, :, :, -64:] -= 10.0
        awake = _wake(self.encoder)
        try:
            maps = dict(zip(self.levels, awake(strips), strict=True))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(_unsuitable(name, f"fails on an image of {height}x{width} px ({error})")) from error
        for level, found in maps.items():
            shape = (2, self.widths[level], height >> level, width >> level)
            if found.shape != shape:
                raise ConfigError(_unsuitable(name, f"gives {tuple(found.shape)} where {shape} is expected"))
        _drop_unused(self.encoder, _find_used(awake, maps.values()))
        ends = [found[..., 0].detach() for found in maps.values()]
        return all(torch.allclose(end[0], end[1], rtol=1e-5, atol=1e-6) for end in ends)


def _wake(encoder: nn.Module) -> nn.Module:
    """A copy for inference in which no layer is switched off: some start with a scale of 0 or 1e-6."""
    awake = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        for parameter in awake.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.fill_(0.5)
    return awake


def _find_used(encoder: nn.Module, maps: Iterable[Tensor]) -> set[str]:
    """Names of the parameters that have a part in the maps."""
    parameters = dict(encoder.named_parameters())
    total = torch.stack([found.sum() for found in maps]).sum()
    slopes = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}


def _drop_unused(encoder: nn.Module, used: set[str]) -> None:
    """Replace the modules without a used parameter; some encoders of timm keep and run them."""
    for parent_name, parent in list(encoder.named_modules()):
        for name, child in list(parent.named_children()):
            path = f"{parent_name}.{name}." if parent_name else f"{name}."
            has_parameters = next(child.parameters(), None) is not None
            if has_parameters and not any(each.startswith(path) for each in used):
                setattr(parent, name, nn.Identity())


def _create(
    encoder: str, *, in_channels: int, pretrained: bool = False, out_indices: Sequence[int] | None = None
) -> Any:
    """The feature extractor of that name."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", extra="train") from error
    if not timm.is_model(encoder):
        close = get_close_matches(encoder, timm.list_models(), n=5, cutoff=0.0)
        raise ConfigError(
            explain(
                got=f"model.encoder={encoder!r} is unknown",
                need="null (own encoder) or one of timm.list_models()",
                hint=" or ".join(close),
            )
        )
    selection: dict[str, Any] = {} if out_indices is None else {"out_indices": tuple(out_indices)}
    try:
        return timm.create_model(encoder, features_only=True, pretrained=pretrained, in_chans=in_channels, **selection)
    except Exception as error:  # timm and its download raise many kinds
        got = f"model.encoder={encoder!r} with pretrained={pretrained} cannot be made ({type(error).__name__}: {error})"
        hint = "model.pretrained=false" if pretrained else "model.encoder=resnet18"
        raise ConfigError(explain(got=got, need="an encoder and weights that timm can give", hint=hint)) from error


def _choose(encoder: str, strides: Sequence[int], max_level: int) -> dict[int, int]:
    """{level: index among the encoder's maps} for the levels 1..max_level that it has."""
    levels = {round(math.log2(stride)): index for index, stride in enumerate(strides)}
    if max_level not in levels:
        lengths = [str(level + 1) for level in sorted(levels) if level >= 1]
        raise ConfigError(
            explain(
                got=f"model.widths has {max_level + 1} entries for model.encoder={encoder!r}",
                need=f"one per stride 1, 2, 4, ..., in number one of {', '.join(lengths) or '(none)'}",
                hint=f"a list of {lengths[-1]} widths" if lengths else "another encoder",
            )
        )
    return {level: index for level, index in sorted(levels.items()) if 1 <= level <= max_level}


def _unsuitable(encoder: str, why: str) -> str:
    return explain(
        got=f"model.encoder={encoder!r} {why}",
        need="an encoder that takes images of any size",
        hint="model.encoder=resnet18",
    )
