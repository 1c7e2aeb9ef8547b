"""Normalisation layers of a bottom-up, and how a part of a net is frozen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.errors import ConfigError, check_choice, explain

NORMS = ("frozen", "batch", "sync", "group")
"""Kinds that ``build_norm`` makes."""

_GROUPS = 32
_Part = TypeVar("_Part", bound=nn.Module)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by fixed statistics and a fixed scale and offset, all four of them buffers.

    Where a batch is one or two images the statistics of training batches are noise; those of the pretrained weights
    are better. Nothing here is trained, and training and evaluation give the same result.

    Attributes:
        weight, bias, running_mean, running_var: (C,) float32; at the start the layer changes nothing.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        """Start as the identity for ``channels`` channels."""
        super().__init__()
        self.channels, self.eps = channels, eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) normalised, in the dtype of ``maps``.

        With a gradient on the way, scale and offset are applied one after the other: ``F.batch_norm`` would keep its
        input for the way back, which doubles the memory of every layer. Without one it is the fastest.
        """
        if not (torch.is_grad_enabled() and maps.requires_grad):
            return F.batch_norm(
                maps, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        offset = self.bias - self.running_mean * scale
        shape = (1, -1, 1, 1)
        return (maps * scale.to(maps.dtype).view(shape)).add_(offset.to(maps.dtype).view(shape))

    def extra_repr(self) -> str:
        """What ``print(net)`` shows in the brackets."""
        return f"{self.channels}, eps={self.eps}"


def build_norm(kind: str, channels: int) -> nn.Module:
    """Normalisation of maps (B, ``channels``, H, W).

    Args:
        kind: "frozen" (see FrozenBatchNorm), "batch", "sync" (batch statistics over all processes; as "batch" in one
            process) or "group" (32 groups, or the largest number below that divides 32 and the channels; sees the
            whole image).
        channels: of the maps.

    Raises:
        ConfigError: ``kind`` is not one of NORMS.

    Example:
        >>> build_norm("group", 112).num_groups
        16
    """
    check_choice("model.norm", kind, NORMS)
    if kind == "frozen":
        return FrozenBatchNorm(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return nn.SyncBatchNorm(channels) if kind == "sync" else nn.BatchNorm2d(channels)


@contextmanager
def explain_lone_values() -> Iterator[None]:
    """Turn torch's error for batch statistics of a single value into a ConfigError with a way out."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        got = "a training batch of one image, so small that its deepest map is one pixel"
        need = "two values or more, or batch normalisation has no spread to divide by"
        hint = "model.norm=group"
        raise ConfigError(explain(got=got, need=need, hint=hint)) from error


def freeze(part: _Part) -> _Part:
    """``part`` itself with nothing left to train: no gradients, and batch statistics as they are now.

    A batch normalisation without gradients would still follow the batches with its running statistics, so each
    becomes a FrozenBatchNorm. ``part`` must not be a batch normalisation itself, as it is changed in place.
    """
    assert not isinstance(part, nn.modules.batchnorm._BatchNorm)
    part.requires_grad_(False)
    for module in part.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
                setattr(module, name, _to_frozen(child))
    return part


def _to_frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm:
    frozen = FrozenBatchNorm(norm.num_features, eps=norm.eps)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    frozen.running_mean.copy_(norm.running_mean)
    frozen.running_var.copy_(norm.running_var)
    frozen.weight.copy_(norm.weight.detach())
    frozen.bias.copy_(norm.bias.detach())
    return frozen.to(norm.running_mean.device)
