"""Running statistics of batch normalisations, taken anew from the images a pruned net sees."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from cellvision.models.base import SegNet, keep_modes


class _Logits(nn.Module):
    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> object:
        return self.net.logits(images)


def refresh_batch_norm(net: SegNet, batches: Iterable[Tensor]) -> None:
    """Replace running means and variances by those over the batches; frozen normalisations keep theirs.

    Without its neighbours a channel has another distribution: with the statistics from before, validation directly
    behind a step tells more of them than of the net.

    Args:
        net: its training mode and weights stay as they are.
        batches: (B, C, H, W) raw counts each, on the net's device; 20 and more of training size are plenty.
    """
    with keep_modes(net):
        update_bn(batches, _Logits(net))
