"""Any encoder of timm that takes images of any size, as {level: feature map}."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, MissingExtraError, explain
from cellvision.models.backbones.blocks import BottomUp
from cellvision.models.build import BACKBONES


@BACKBONES.register("timm")
class TimmBackbone(nn.Module):
    """Feature maps of a timm encoder by level; level i has stride 2**i and is of ceil(size / 2**i) px.

    Layers behind the deepest level asked for are left out. What timm declares of an encoder is not taken on trust:
    it is run once on a small image, which also shows whether it sees the whole image at once.

    Attributes:
        widths: channels of each level from 1 up that the encoder has; one that begins at stride 4 has no level 1.
        tiles: False where the encoder sees the whole image (squeeze-and-excitation, attention).
        key: setting that holds the encoder's name, for error texts.
        others: what that setting takes besides the names of timm, for error texts.
    """

    key = "model.encoder"
    others: tuple[str, ...] = ("null (own encoder)",)

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
        strides = self._create(encoder, in_channels=in_channels).feature_info.reduction()
        found = {round(math.log2(stride)): index for index, stride in enumerate(strides)}
        self._check_levels(encoder, found, max_level)
        chosen = {level: index for level, index in sorted(found.items()) if 1 <= level <= max_level}
        self.levels = tuple(chosen)
        indices = list(chosen.values())
        self.encoder = self._create(encoder, pretrained=pretrained, in_channels=in_channels, out_indices=indices)
        self.widths = dict(zip(self.levels, self.encoder.feature_info.channels(), strict=True))
        self.tiles = self._probe(encoder, in_channels)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, widths[level], H / 2**level, W / 2**level)} of (B, C, H, W), finest first."""
        return self._run(self.encoder, images)

    def _run(self, encoder: nn.Module, images: Tensor) -> dict[int, Tensor]:
        """The maps of ``encoder``, which is this one or a copy of it; some transformers give theirs as (B, H, W, C)."""
        maps = encoder(images)
        if getattr(self.encoder, "output_fmt", "NCHW") == "NHWC":
            maps = [found.permute(0, 3, 1, 2) for found in maps]
        return dict(zip(self.levels, maps, strict=True))

    def _create(
        self, encoder: str, *, in_channels: int, pretrained: bool = False, out_indices: Sequence[int] | None = None
    ) -> Any:
        """The feature extractor of that name."""
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError("timm", extra="train") from error
        if not timm.is_model(encoder):
            close = get_close_matches(encoder, [*self.others, *timm.list_models()], n=5, cutoff=0.0)
            need = f"{', '.join(self.others)} or one of timm.list_models(), such as {', '.join(close)}"
            got = f"{self.key}={encoder!r} is unknown"
            raise ConfigError(explain(got=got, need=need, hint=f"{self.key}={close[0]}"))
        given: dict[str, Any] = {"features_only": True, "pretrained": pretrained, "in_chans": in_channels}
        if out_indices is not None:
            given["out_indices"] = tuple(out_indices)
        try:
            try:  # windowed transformers take other sizes than those of their pretraining only when told to
                return timm.create_model(encoder, strict_img_size=False, **given)
            except TypeError:
                return timm.create_model(encoder, **given)
        except Exception as error:  # timm and its download raise many kinds
            got = f"{self.key}={encoder!r} with pretrained={pretrained} cannot be made"
            raise ConfigError(
                explain(
                    got=f"{got} ({type(error).__name__}: {error})",
                    need="an encoder and weights that timm can give",
                    hint="model.pretrained=false" if pretrained else f"{self.key}=resnet18",
                )
            ) from error

    def _check_levels(self, name: str, known: Collection[int], max_level: int) -> None:
        """Raise ConfigError, in the words of a U-Net's settings, if the deepest level is not among the known ones."""
        if max_level not in known:
            lengths = [str(level + 1) for level in sorted(known) if level >= 1]
            widths = f"model.widths={[16 * 2**level for level in range(max(known, default=0) + 1)]}"
            raise ConfigError(
                explain(
                    got=f"model.widths has {max_level + 1} entries for {self.key}={name!r}",
                    need=f"one per stride 1, 2, 4, ..., in number one of {', '.join(lengths) or '(none)'}",
                    hint=widths if lengths else f"{self.key}=resnet18",
                )
            )

    def _probe(self, name: str, in_channels: int) -> bool:
        """Check shapes, drop unused layers, and tell whether the near end is blind to a change at the far end."""
        height, width = 2 ** self.levels[-1], 1024
        strips = torch.rand(2, in_channels, height, width, generator=torch.Generator().manual_seed(0))
        strips[1, :, :, :-64] = strips[0, :, :, :-64]
        strips[1, :, :, -64:] -= 10.0
        awake = _wake(self.encoder)
        try:
            maps = self._run(awake, strips)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                _unsuitable(self.key, name, f"fails on an image of {height}x{width} px ({error})")
            ) from error
        for level, found in maps.items():
            shape = (2, self.widths[level], height >> level, width >> level)
            if found.shape != shape:
                raise ConfigError(_unsuitable(self.key, name, f"gives {tuple(found.shape)} where {shape} is expected"))
        _drop_unused(self.encoder, _find_used(awake, maps.values()))
        ends = [found[..., 0].detach() for found in maps.values()]
        return all(torch.allclose(end[0], end[1], rtol=1e-5, atol=1e-6) for end in ends)


class TimmBottomUp(TimmBackbone, BottomUp):
    """Feature maps of a timm encoder for a detector: only the levels asked for, and parts of it frozen.

    Attributes:
        widths: channels of each level asked for.
        tiles: False where the encoder sees the whole image.
        stem_stride: stride of level 2.
    """

    key = "model.backbone"

    def __init__(
        self,
        *,
        encoder: str,
        in_channels: int,
        levels: Collection[int],
        norm: str,
        stem_stride: int = 4,
        freeze_at: int = 0,
        others: Sequence[str] = (),
    ) -> None:
        """Make the encoder, without weights.

        Args:
            encoder: a name that ``timm.list_models()`` knows.
            in_channels: as in ``build_bottom_up``, and so the next four.
            levels: that the encoder has.
            norm: what becomes of batch normalisations; "frozen", "batch" or "sync".
            stem_stride: 4 or 2.
            freeze_at: the level whose map nothing trained has a part in, or 0.
            others: names besides those of timm that the user could have given.

        Raises:
            ConfigError: as TimmBackbone; or ``norm`` is "group", or the first convolution has another stride than 2
                where it is to have 1.
        """
        self.others, self.wanted = tuple(others), tuple(sorted(levels))
        super().__init__(encoder=encoder, in_channels=in_channels, max_level=self.wanted[-1])
        self.stem_stride = stem_stride
        if stem_stride == 2:
            self._double_size(encoder, in_channels)
        self._set_norm(encoder, norm)
        if freeze_at:
            self._freeze(encoder, in_channels, min(freeze_at, self.wanted[-1]))
        self.widths = {level: self.widths[level] for level in self.wanted}

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """{level: (B, widths[level], H / stride, W / stride)} of (B, C, H, W) float32, finest first."""
        maps = super().forward(images)
        return {level: maps[level] for level in self.wanted}

    def _check_levels(self, name: str, known: Collection[int], max_level: int) -> None:
        if not set(self.wanted) <= set(known):
            has = sorted(level for level in known if level >= 1)
            got = f"model.levels={list(self.wanted)} for {self.key}={name!r}"
            raise ConfigError(explain(got=got, need=f"some of its levels {has}", hint="another encoder"))

    def _double_size(self, name: str, in_channels: int) -> None:
        """Let the first convolution skip no pixel, which makes every map twice as large."""
        first = next((module for module in self.encoder.modules() if isinstance(module, nn.Conv2d)), None)
        was = None if first is None else tuple(first.stride)
        if first is not None and was == (2, 2):
            first.stride = (1, 1)
            side = 2 ** (self.levels[-1] + 1)
            sides = {level: found.shape[-1] for level, found in self._look(in_channels, side)[1].items()}
            if all(found == 2 * side >> level for level, found in sides.items()):
                return
        need = "an encoder whose first convolution has stride 2 and an odd kernel"
        got = f"model.stem_stride=2 with {self.key}={name!r}, whose first convolution has stride {was}"
        raise ConfigError(explain(got=got, need=need, hint="model.stem_stride=4"))

    def _set_norm(self, name: str, norm: str) -> None:
        """Convert the batch normalisations there are; timm's know of the activation that some hold."""
        import timm.layers

        if norm == "group":
            got = f"model.norm=group with {self.key}={name!r}"
            raise ConfigError(
                explain(got=got, need="frozen, batch or sync for encoders of timm", hint="model.norm=batch")
            )
        convert = {"frozen": timm.layers.freeze_batch_norm_2d, "sync": timm.layers.convert_sync_batchnorm}
        if norm in convert:
            self.encoder = convert[norm](self.encoder)

    def _freeze(self, name: str, in_channels: int, level: int) -> None:
        """Leave nothing to train in what has a part in the map of that level."""
        import timm.layers

        if level not in self.levels:
            got = f"model.freeze_at={level} with {self.key}={name!r}"
            raise ConfigError(
                explain(got=got, need=f"0 or one of its levels {list(self.levels)}", hint="model.freeze_at=0")
            )
        awake, maps = self._look(in_channels, 2 ** self.levels[-1])
        used = _find_used(awake, [maps[level]])
        for path, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(path not in used)
        for path, module in list(self.encoder.named_modules()):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{path}.weight" in used:
                self.encoder.set_submodule(path, timm.layers.freeze_batch_norm_2d(module))

    def _look(self, in_channels: int, side: int) -> tuple[nn.Module, dict[int, Tensor]]:
        """An awake copy of the encoder, and its maps of a square image with ``side`` px."""
        awake = _wake(self.encoder)
        images = torch.rand(1, in_channels, side, side, generator=torch.Generator().manual_seed(0))
        return awake, self._run(awake, images)


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


def _unsuitable(key: str, encoder: str, why: str) -> str:
    return explain(
        got=f"{key}={encoder!r} {why}",
        need="an encoder that takes images of any size",
        hint=f"{key}=resnet18",
    )
