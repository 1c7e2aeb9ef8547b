"""What the lessons of all kinds of nets have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cellvision.checks import check_count, check_range
from cellvision.compression.distill.adapters import Adapter
from cellvision.compression.distill.detection_losses import CONFIDENT
from cellvision.compression.distill.feature_losses import compute_channel_loss, compute_focus_loss, weigh_cells
from cellvision.compression.distill.taps import Seen
from cellvision.types import Batch


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a teacher is listened to.

    Attributes:
        temperature: of classes and masks, up to 100, see `compute_softmax_divergence`.
        channel_temperature: of the places of a channel, up to 100, see `compute_channel_loss`.
        boundary_px: cells' boundaries reach so far to both sides, up to 100.
        quality_power: of a place's weight, up to 100, see `compute_fcos_class_loss`.
        confident: quality from which a box of the teacher counts.
    """

    temperature: float = 2.0
    channel_temperature: float = 1.0
    boundary_px: int = 2
    quality_power: float = 1.0
    confident: float = CONFIDENT

    def __post_init__(self) -> None:
        for name in ("temperature", "channel_temperature"):
            check_range(f"compress.distill.{name}", getattr(self, name), above=0, high=100, example=2.0)
        check_count("compress.distill.boundary_px", self.boundary_px, high=100, example=2)
        check_range("compress.distill.quality_power", self.quality_power, low=0, high=100, example=1.0)
        check_range("compress.distill.confident", self.confident, low=0, below=1, example=0.3)


@dataclass(kw_only=True)
class Lesson(ABC):
    """One batch: what the student computed and what the teacher says, and the terms in which they are compared.

    Each term is a method of that name, a scalar without weight, in float32, with a gradient also where it is 0.

    Attributes:
        batch: that the student was trained on.
        seen: what its taps took.
        told: of ``Teacher.look``.
        adapters: by stride in px, where feature terms are on.
        manner: see Manner.
    """

    batch: Batch
    seen: Seen
    told: Mapping[str, Tensor]
    adapters: Mapping[int, Adapter]
    manner: Manner

    def compute(self, term: str) -> Tensor:
        """The loss of a term by its name, in float32 whatever the precision of training."""
        with torch.autocast(self.batch.images.device.type, enabled=False):
            value: Tensor = getattr(self, term)()
        return value

    @abstractmethod
    def find_features(self, stride: int) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's (B, .., H, W) features at a stride."""

    def features(self) -> Tensor:
        """Mean over the shared strides of `compute_channel_loss`."""
        pairs = [self._adapt(stride) for stride in self.adapters]
        losses = [compute_channel_loss(*pair, temperature=self.manner.channel_temperature) for pair in pairs]
        return torch.stack(losses).mean()

    def focus(self) -> Tensor:
        """Mean over the shared strides of `compute_focus_loss`."""
        losses = []
        for stride in self.adapters:
            student, teacher = self._adapt(stride)
            height, width = student.shape[-2:]
            labels = self.batch.targets.label_image
            cells, outside = weigh_cells(labels, stride=stride, height=height, width=width)
            losses.append(compute_focus_loss(student, teacher, cells=cells, outside=outside))
        return torch.stack(losses).mean()

    def _adapt(self, stride: int) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.adapters[stride](*self.find_features(stride))
        return found
