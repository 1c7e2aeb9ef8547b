"""Training that makes the scales of normalisations tell which channels are needed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def pull_scales(net: nn.Module, strength: float) -> None:
    """Pull the scale of every batch and group normalisation towards 0 by a constant force.

    After Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017): the gradient of the
    sum of the scales' absolute values is added to theirs. Then ``importance="bn_scale"`` says something.

    Call it between the backward pass and the optimizer's step; weight decay of its own on scales is not needed.

    Args:
        net: with the gradients of a backward pass.
        strength: of the force; 1e-5 to 1e-4 for losses of about 1.

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> norm.weight.data = torch.tensor([2.0, -3.0])
        >>> norm(torch.zeros(1, 2, 4, 4)).sum().backward()
        >>> pull_scales(norm, 0.5)
        >>> norm.weight.grad
        tensor([ 0.5000, -0.5000])
    """
    for module in net.modules():
        if isinstance(module, _BatchNorm | nn.GroupNorm) and module.weight is not None:
            weight = module.weight
            if weight.grad is not None:
                weight.grad.add_(weight.sign(), alpha=strength)
