"""Losses on the overlap of predicted and true regions; shapes as in ``loss_term``."""

from __future__ import annotations

import torch
from torch import Tensor

from cellvision.checks import check_range
from cellvision.ops.loss_term import ClassTerm, compute_sum_of_processes


class Tversky(ClassTerm):
    """1 - Tversky index of the foreground classes, averaged over them; counted over the whole batch of all processes.

    Salehi et al., "Tversky loss function for image segmentation" (2017): TP / (TP + alpha FP + beta FN) on
    probabilities. Per image instead, a field without dead cells would push that class by its noise alone.
    """

    name = "tversky"

    def __init__(
        self, *, activation: str, class_count: int, alpha: float = 0.3, beta: float = 0.7, smoothing: float = 1.0
    ) -> None:
        """``alpha`` weighs false positives, ``beta`` misses; ``smoothing`` px > 0 keep absent classes defined."""
        super().__init__(activation=activation, class_count=class_count)
        check_range(f"model.loss.{self.name}.alpha", alpha, low=0, example=0.5)
        check_range(f"model.loss.{self.name}.beta", beta, low=0, example=0.5)
        check_range(f"model.loss.{self.name}.smoothing", smoothing, low=1e-7, example=1.0)
        self.alpha, self.beta, self.smoothing = alpha, beta, smoothing

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Scalar loss in 0..1; the shapes are in the module's text."""
        right = self._compute_log_probabilities(logits).exp()[:, 1 - self.class_count :]
        truth, mask = target[:, 1:], valid.unsqueeze(1)
        pixels = right * truth, right * (1 - truth), (1 - right) * truth
        sums = torch.stack([(each * mask).sum((0, 2, 3)) for each in pixels])
        hits, false, missed = compute_sum_of_processes(sums)
        index = (hits + self.smoothing) / (hits + self.alpha * false + self.beta * missed + self.smoothing)
        return (1 - index).mean()


class Dice(Tversky):
    """1 - Dice coefficient of the foreground classes, averaged over them: Tversky with alpha = beta = 1/2.

    Milletari et al., "V-Net" (2016).
    """

    name = "dice"

    def __init__(self, *, activation: str, class_count: int, smoothing: float = 1.0) -> None:
        """``smoothing`` px > 0 are added to numerator and denominator of 2 TP / (2 TP + FP + FN)."""
        check_range("model.loss.dice.smoothing", smoothing, low=1e-6, example=1.0)
        super().__init__(activation=activation, class_count=class_count, alpha=0.5, beta=0.5, smoothing=smoothing / 2)
