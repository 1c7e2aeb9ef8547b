"""The parts of a net that lose channels together, and what each channel of theirs hangs on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cellvision.compression.prune.graph import ChannelGraph
from cellvision.models.base import SegNet

_HEADS = "leads into attention heads or a deformable convolution"
_NOT_FOLLOWED = ("scaleddotproduct", "softmax", "deformconv", "deform_conv")
"""Operations between whose channels there are ties that the trace does not see: attention heads, moved samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Where the channels of a part lie in one side of one layer.

    Attributes:
        name: of the layer, or of a lone parameter.
        layer: the module, or the parameter.
        is_out: of its results; else of what it takes in.
        dim: of a lone parameter, in which its channels lie; -1 for layers.
        channels: (M,) int64, which channel of the part ...
        places: (M,) int64, ... lies at which place there. Behind a flattening a channel has several.
    """

    name: str
    layer: nn.Module | nn.Parameter
    is_out: bool
    dim: int
    channels: Tensor
    places: Tensor

    def list_tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """Name, tensor and dimension of everything that is cut here."""
        if isinstance(self.layer, nn.Parameter):
            yield self.name, self.layer, self.dim
        elif isinstance(self.layer, _ConvNd | nn.Linear):
            is_grouped = isinstance(self.layer, _ConvNd) and self.layer.groups > 1
            is_transposed = isinstance(self.layer, _ConvNd) and self.layer.transposed
            if self.is_out or not is_grouped:  # the other side of a grouped weight has the length of one group
                yield f"{self.name}.weight", self.layer.weight, int(self.is_out == is_transposed)
            if self.is_out and self.layer.bias is not None:
                yield f"{self.name}.bias", self.layer.bias, 0
        else:
            tensors = (*self.layer.named_parameters(recurse=False), *self.layer.named_buffers(recurse=False))
            for key, tensor in tensors:
                if tensor.ndim == 1:
                    yield f"{self.name}.{key}", tensor, 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Layers that lose the same channels.

    Attributes:
        name: of the first layer of the net, in the order it was built, that makes these channels.
        width: channels.
        unit: so many neighbours stay or leave together: a group of a normalisation or of a convolution.
        slices: where they lie.
        kept_because: why nothing may be removed here; None where it may.
    """

    name: str
    width: int
    unit: int
    slices: tuple[Slices, ...]
    kept_because: str | None

    @property
    def make(self) -> tuple[tuple[str, bool], ...]:
        """Kinds and sides of the layers; parts of the same make can be compared."""
        return tuple((type(each.layer).__name__, each.is_out) for each in self.slices)


def list_parts(net: SegNet, image: Tensor, *, protected: Sequence[str] = ()) -> list[Part]:
    """All parts of a net in the order of its layers.

    Args:
        net: any; it is the same afterwards.
        image: (1, C, H, W) raw counts.
        protected: patterns of layers that keep their channels.
    """
    graph = ChannelGraph(net, image)
    names = {module: name for name, module in net.named_modules()}
    groups = graph.get_all_groups(root_module_types=[tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR])
    order = {name: at for at, name in enumerate(names.values())}
    parts = [_build_part(group, graph, names, order, protected) for group in groups]
    return sorted(parts, key=lambda part: order[part.name])


def _build_part(
    group: Any, graph: ChannelGraph, names: dict[Any, str], order: dict[str, int], protected: Sequence[str]
) -> Part:
    slices = tuple(_list_slices(group, graph, names))
    makers = [each.name for each in slices if each.is_out and isinstance(each.layer, _ConvNd | nn.Linear)]
    unit = math.lcm(*(_find_unit(each) for each in slices))
    return Part(
        name=min(makers, key=order.__getitem__),
        width=len(slices[0].places),
        unit=unit,
        slices=slices,
        kept_because=_find_reason(group, graph, slices, unit, protected),
    )


def _list_slices(group: Any, graph: ChannelGraph, names: dict[Any, str]) -> Iterator[Slices]:
    for item in group.items:
        target, layer = item.dep.target, item.dep.target.module
        is_lone = target.type == tp.ops.OPTYPE.PARAMETER
        if not is_lone and layer not in names:
            continue  # an operation without weights
        yield Slices(
            name=graph._param_to_name[layer] if is_lone else names[layer],
            layer=layer,
            is_out=graph.is_out_channel_pruning_fn(item.dep.handler),
            dim=target.pruning_dim if is_lone else -1,
            channels=torch.tensor(item.root_idxs),
            places=torch.tensor(item.idxs),
        )


def _find_unit(slices: Slices) -> int:
    layer = slices.layer
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels // layer.num_groups
    return layer.out_channels // layer.groups if isinstance(layer, _ConvNd) and layer.groups > 1 else 1


def _find_reason(
    group: Any, graph: ChannelGraph, slices: Sequence[Slices], unit: int, protected: Sequence[str]
) -> str | None:
    """Why the part keeps its channels, or None."""
    for item in group.items:
        made_by = item.dep.target.grad_fn
        if made_by in graph.ends:
            return "is a result of the net, or a gate"
        if made_by in graph.parted:
            return _HEADS
        operation = made_by.name().lower() if hasattr(made_by, "name") else ""
        if any(word in operation for word in _NOT_FOLLOWED):
            return _HEADS
    for each in slices:
        if each.is_out and any(fnmatchcase(each.name, pattern) for pattern in protected):
            return "is in compress.prune.protected"
        is_uneven = isinstance(each.layer, _ConvNd) and each.layer.groups > 1 and not _is_even(each.layer)
        if is_uneven or (_find_unit(each) > 1 and not torch.equal(each.channels // unit, each.places // unit)):
            return "has groups of channels that do not fit those of its neighbours"
    return None


def _is_even(conv: _ConvNd) -> bool:
    return conv.in_channels == conv.out_channels and not conv.transposed
