"""A lesson for a net that says something of every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from cellvision.compression.distill.feature_losses import compute_channel_loss
from cellvision.compression.distill.lesson import Lesson
from cellvision.compression.distill.map_losses import (
    compute_class_divergence,
    compute_distance_loss,
    find_boundary,
    find_valid,
)
from cellvision.compression.distill.teacher import Teacher
from cellvision.models.map_net import MapNet
from cellvision.ops.loss_term import compute_weighted_mean


@dataclass(kw_only=True)
class MapLesson(Lesson):
    """Classes, boundaries, distances and decoder maps; see Lesson."""

    net: MapNet

    def classes(self) -> Tensor:
        """Mean over the pixels of the divergence of their classes."""
        return compute_weighted_mean(self._divergence, self._valid)

    def boundary(self) -> Tensor:
        """The same over the pixels around where cells end."""
        near = find_boundary(self.batch.targets.label_image, radius_px=self.manner.boundary_px)
        return compute_weighted_mean(self._divergence, near * self._valid)

    def class_channels(self) -> Tensor:
        """Where each class is: `compute_channel_loss` of the class logits."""
        valid = self._valid.unsqueeze(1)
        student, teacher = self._classes * valid, self.told["classes"].float() * valid
        return compute_channel_loss(student, teacher, temperature=self.manner.channel_temperature)

    def distance(self) -> Tensor:
        """See `compute_distance_loss`."""
        return compute_distance_loss(
            self._head[:, self.net.class_outputs :], self.told["distance"].float(), self._valid
        )

    def find_features(self, stride: int) -> tuple[Tensor, Tensor]:
        """See Lesson."""
        return self.seen[f"stride_{stride}"][1], self.told[f"stride_{stride}"]

    @cached_property
    def _head(self) -> Tensor:
        height, width = self.batch.images.shape[-2:]
        found: Tensor = self.seen["head"][1][..., :height, :width]
        return found.float()

    @property
    def _classes(self) -> Tensor:
        return self._head[:, : self.net.class_outputs]

    @cached_property
    def _divergence(self) -> Tensor:
        return compute_class_divergence(
            self._classes,
            self.told["classes"].float(),
            activation=self.net.activation,
            temperature=self.manner.temperature,
        )

    @cached_property
    def _valid(self) -> Tensor:
        return find_valid(self.batch.images, self.batch.targets.sizes)


def list_missing_of_maps(student: MapNet, teacher: Teacher | None) -> dict[str, str]:
    """{term: why it cannot be taught}; no teacher stands for one that is the student as it is."""
    missing = {} if student.has_distance else {"distance": "the net has no distance map"}
    if teacher is not None and teacher.net is None:
        missing |= dict.fromkeys(("features", "focus"), "a bundle shows no features; its checkpoint does")
    return missing
