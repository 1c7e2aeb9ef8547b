"""What importances by gradients look at: how the training loss moves with each weight, over some batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from cellvision.models.base import SegNet
from cellvision.types import Batch

MEAN, ROOT_MEAN_SQUARE = "taylor", "fisher"
GRADIENTS = (MEAN, ROOT_MEAN_SQUARE)
"""The importances that need gradients."""


def take_gradients(net: SegNet, batches: Sequence[Batch], importance: str) -> None:
    """Leave in each parameter's ``grad`` what an importance multiplies it by, over the batches of all processes.

    "taylor" takes the mean gradient. In a net that has learned its data that is small, and mostly by chance; "fisher"
    takes the root of the mean square of the gradients of single batches, in which nothing cancels out.

    Args:
        net: in training mode; parameters that the loss does not reach get no gradient.
        batches: on the net's device, one or more.
        importance: one of GRADIENTS.
    """
    taken: dict[nn.Parameter, Tensor] = {}
    for batch in batches:
        net.zero_grad(set_to_none=True)
        torch.stack(list(net.losses(batch.images, batch.targets).values())).sum().backward()
        for parameter in net.parameters():
            if parameter.grad is not None:
                each = parameter.grad if importance == MEAN else parameter.grad.square()
                taken[parameter] = taken.get(parameter, torch.zeros_like(each)) + each / len(batches)
    is_one_of_several = distributed.is_available() and distributed.is_initialized()
    for parameter in net.parameters():
        parameter.grad = total = taken.get(parameter)
        if total is not None and is_one_of_several:
            distributed.all_reduce(total)
            total /= distributed.get_world_size()
        if total is not None and importance == ROOT_MEAN_SQUARE:
            total.sqrt_()
