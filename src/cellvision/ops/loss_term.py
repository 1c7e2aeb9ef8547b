"""What all loss terms share.

Every class term takes ``logits`` (B, K, H, W) under softmax, or (B, K-1, H, W), the foreground classes, under sigmoid;
``target`` (B, K, H, W) in 0..1, one-hot or soft; ``valid`` (B, H, W), 1 where a pixel counts and 0 where it is ignored.
Where no pixel is valid a term is 0 and still has a gradient (of 0), so that such a batch stops nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from cellvision.errors import check_choice

ACTIVATIONS = ("softmax", "sigmoid")

TINY = 1e-8
"""Floor of denominators and of bases of powers: far below one pixel, far above the smallest float32."""


class ClassTerm(nn.Module):
    """One loss on class logits.

    Attributes:
        name: its key in ``model.loss``.
        activations: those of ACTIVATIONS that it is defined for.
    """

    name: ClassVar[str]
    activations: ClassVar[tuple[str, ...]] = ACTIVATIONS

    def __init__(self, *, activation: str, class_count: int) -> None:
        """Keep how logits become probabilities, and K with the background."""
        super().__init__()
        check_choice(f"model.activation for model.loss.{self.name}", activation, self.activations)
        self.activation = activation
        self.class_count = class_count

    def _compute_log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=1) if self.activation == "softmax" else F.logsigmoid(logits)


def compute_weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Scalar mean of ``values`` by ``weights`` of the same shape; 0, with a gradient, where all weights are 0.

    Over the values of all processes that train together; see ``compute_sum_of_processes``.
    """
    sums = torch.stack([(values * weights).sum(), weights.sum()])
    total, weight = compute_sum_of_processes(sums)
    return total / weight.clamp_min(TINY)


def compute_sum_of_processes(sums: Tensor) -> Tensor:
    """``sums`` added up over the processes that train together; as they are where there is one.

    A loss of such sums is that of the joint batch, in each process alike. Its gradient counts what this process has
    once for every process, so that the mean of the gradients, which DistributedDataParallel takes, is that of the joint
    batch too, however unevenly pixels and cells fall on the processes.

    Every process has to call it equally often while gradients are computed. Where none are wanted each process keeps
    its own: in validation one with a batch more would wait for an answer that never comes.

    Args:
        sums: of any shape, the same in each process; floats.
    """
    if not (torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized()):
        return sums
    own = sums.detach()
    total = own.clone()
    distributed.all_reduce(total)
    return total + distributed.get_world_size() * (sums - own)  # the difference is 0 and has the gradient
