"""What a net costs: multiplications per image, and parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cellvision.compression.prune.runs import REGIONS, run_layers
from cellvision.models.base import SegNet, keep_modes

_ATEN = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a net costs.

    Attributes:
        macs: multiplications with a weight for one image, in convolutions and linear layers; those of one tensor with
            another (attention), of normalisation and of pooling are left out.
        parameters: numbers that are trained.
    """

    macs: int
    parameters: int


def count_cost(net: SegNet, image: Tensor, *, regions: int = REGIONS) -> Cost:
    """The cost for one image.

    Args:
        net: of any mode, which it keeps.
        image: (1, C, H, W) raw counts.
        regions: cells in it, for nets that draw each mask on its own.

    Example:
        >>> from cellvision.models.build import build_model
        >>> net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(4, 8))
        >>> count_cost(net, torch.zeros(1, 1, 32, 32))
        Cost(macs=864256, parameters=1590)
    """
    return weigh(net, count_positions(net, image, regions=regions), {})


def weigh(net: SegNet, positions: Mapping[str, int], sizes: Mapping[str, int]) -> Cost:
    """The cost of a net in which some tensors had other sizes.

    Args:
        net: as it is.
        positions: of ``count_positions``; pruning does not change them.
        sizes: {parameter name: how many numbers it would have}; of others, as many as it has.
    """
    numbers = {name: sizes.get(name, parameter.numel()) for name, parameter in net.named_parameters()}
    macs = sum(count * numbers[name] for name, count in positions.items())
    return Cost(macs=macs, parameters=sum(numbers.values()))


def count_positions(net: SegNet, image: Tensor, *, regions: int = REGIONS) -> dict[str, int]:
    """{name of a weight: how often each of its numbers is multiplied for the image}; arguments as ``count_cost``."""
    names = {parameter.data_ptr(): name for name, parameter in net.named_parameters() if parameter.ndim > 1}
    with keep_modes(net), torch.no_grad(), _Positions(names) as seen:
        run_layers(net.eval(), image, regions=regions)
    return dict(seen.found)


class _Positions(TorchDispatchMode):
    """Notes every product of a named weight with something."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """``names``: address of a weight's first number -> name."""
        super().__init__()
        self.names = names
        self.found: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        match func.overloadpacket:
            case _ATEN.convolution:
                given, weight, is_transposed = args[0], args[1], args[6]
                self._note(weight, given if is_transposed else result, 1)
            case torch.ops.torchvision.deform_conv2d:
                self._note(args[1], result, 1)
            case _ATEN.addmm:
                self._note(args[2], result, -1)
            case _ATEN.mm | _ATEN.bmm:
                self._note(args[1], result, -1)
        return result

    def _note(self, weight: Tensor, maps: Tensor, channels_at: int) -> None:
        if name := self.names.get(weight.data_ptr()):
            self.found[name] += math.prod(maps.shape) // maps.shape[channels_at]
