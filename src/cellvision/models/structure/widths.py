"""The widths of a pruned net as plain data: read from it, and given to a fresh net of the same configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cellvision.errors import DataError, explain

_COUNTS = ("num_features", "num_channels", "channels")
"""Attributes in which normalisations keep the length of their tensors."""


def read_widths(net: nn.Module, like: nn.Module) -> dict[str, Any]:
    """In what a net differs from one of the same configuration that was never pruned.

    Args:
        net: the pruned net.
        like: a net of ``build_model(**net.config)``.

    Returns:
        "widths": {tensor name: [shape]} of the weights and buffers whose shape differs, and "groups": {module name:
        groups} of the convolutions and group normalisations whose number of groups differs. Plain, for a record.

    Raises:
        DataError: the two have other tensors.

    Example:
        >>> small, full = nn.Sequential(nn.Conv2d(1, 3, 1)), nn.Sequential(nn.Conv2d(1, 8, 1))
        >>> read_widths(small, full)
        {'widths': {'0.weight': [3, 1, 1, 1], '0.bias': [3]}, 'groups': {}}
    """
    found, before = net.state_dict(), like.state_dict()
    if other := sorted(found.keys() ^ before.keys()):
        got = f"{len(other)} tensors that only one of two nets has, such as {other[0]}"
        raise DataError(explain(got=got, need="two nets of one configuration", hint="build_model(**net.config)"))
    groups, groups_before = _list_groups(net), _list_groups(like)
    return {
        "widths": {name: list(value.shape) for name, value in found.items() if value.shape != before[name].shape},
        "groups": {name: count for name, count in groups.items() if count != groups_before[name]},
    }


def set_widths(net: nn.Module, record: Mapping[str, Any]) -> None:
    """Give a fresh net the shapes of ``read_widths``; the changed tensors hold zeros until weights are loaded.

    Args:
        net: of the configuration that the record was made for; changed in place.
        record: with "widths" and "groups"; whatever else it holds is left alone.

    Raises:
        DataError: a tensor or a module of the record is not in the net, or has another number of dimensions.
    """
    tensors = net.state_dict()
    for name, shape in record["widths"].items():
        if name not in tensors or tensors[name].ndim != len(shape):
            got = f"{name} of shape {list(shape)} in the record of pruning"
            raise DataError(explain(got=got, need="a tensor of the net", hint="the configuration it was made for"))
        replace_tensor(net, name, tensors[name].new_zeros(tuple(shape)))
    modules = dict(net.named_modules())
    for name, count in record["groups"].items():
        if name not in modules:
            got = f"{name} with {count} groups in the record of pruning"
            raise DataError(explain(got=got, need="a layer of the net", hint="the configuration it was made for"))
        set_groups(modules[name], count)
    for owner in {name.rpartition(".")[0] for name in record["widths"]}:
        fit_attributes(modules[owner])


def replace_tensor(net: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` in the place of a parameter, as trainable as before, or of a buffer."""
    owner, _, key = name.rpartition(".")
    module = net.get_submodule(owner)
    before = getattr(module, key)
    if isinstance(before, nn.Parameter):
        setattr(module, key, nn.Parameter(value.detach(), requires_grad=before.requires_grad))
    else:
        setattr(module, key, value.detach())


def get_groups(module: nn.Module) -> int | None:
    """Groups of a convolution or a group normalisation, None of any other module."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    return module.groups if isinstance(module, _ConvNd) else None


def set_groups(module: nn.Module, count: int) -> None:
    """Set what ``get_groups`` tells."""
    setattr(module, "num_groups" if isinstance(module, nn.GroupNorm) else "groups", count)


def fit_attributes(module: nn.Module) -> None:
    """Set the numbers that a layer keeps of its width from the shape of its tensors; its groups are right already."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        sides = (second * module.groups, first) if module.transposed else (first, second * module.groups)
        module.out_channels, module.in_channels = sides
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif lengths := [tensor.shape[0] for tensor in _list_own(module) if tensor.ndim == 1]:
        for key in _COUNTS:
            if isinstance(getattr(module, key, None), int):
                setattr(module, key, lengths[0])


def _list_groups(net: nn.Module) -> dict[str, int]:
    found = {name: get_groups(module) for name, module in net.named_modules()}
    return {name: count for name, count in found.items() if count is not None}


def _list_own(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
