"""What makes the student's feature maps comparable with the teacher's: their channels, and their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.compression.distill.taps import list_sources
from cellvision.errors import ConfigError, explain
from cellvision.models.base import SegNet


class Adapter(nn.Module):
    """A student's map with the channels of the teacher's.

    Where both have equally many, channel i of one is channel i of the other: a student that began as the teacher's copy
    is compared by the channels that it still has. Elsewhere a 1 px convolution is trained, as in FitNets (Romero et al.
    2015). Its weight keeps the width that the student had at first, so that optimizers and checkpoints need not know of
    pruning.

    Attributes:
        source: a parameter of the net whose first dimension is the student's channels.
        weight: (teacher's channels, student's at first), or None.
        stays: (student's at first,) bool, which of them it still has.
    """

    stays: Tensor

    def __init__(self, *, source: str, width: int, teacher_width: int) -> None:
        super().__init__()
        self.source = source
        self.weight: nn.Parameter | None = None
        if width != teacher_width:
            self.weight = nn.Parameter(torch.empty(teacher_width, width))
            nn.init.kaiming_uniform_(self.weight, a=1)
        self.register_buffer("stays", torch.ones(width, dtype=torch.bool))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps in float32 with equal channels and places; those that only one has, by its padding, are cut off.

        Args:
            student: (B, C, H, W).
            teacher: (B, C', H', W').

        Raises:
            ConfigError: the student has other channels than it is known to have.
        """
        if student.shape[1] != int(self.stays.sum()):
            got = f"a student with {student.shape[1]} channels at {self.source}, where it had {int(self.stays.sum())}"
            need, hint = "to be told which ones were cut", "Adapter.follow(cut) whenever channels are cut"
            raise ConfigError(explain(got=got, need=need, hint=hint))
        found, wanted = cut_to_shared(student.float(), teacher.float())
        if self.weight is None:
            return found, wanted[:, self.stays]
        return F.conv2d(found, self.weight.float()[:, self.stays, None, None]), wanted

    def follow(self, kept: Mapping[str, Mapping[int, Tensor]]) -> None:
        """Take note of a cut of the student: its ``Cut.kept``."""
        places = kept.get(self.source, {}).get(0)
        if places is not None:
            left = self.stays.nonzero().squeeze(1)[places.to(self.stays.device)]
            self.stays.zero_()
            self.stays[left] = True


def cut_to_shared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The places that two (.., H, W) maps of one stride share: nets pad to different multiples, right and below."""
    height, width = (min(first.shape[dim], second.shape[dim]) for dim in (-2, -1))
    return first[..., :height, :width], second[..., :height, :width]


def build_adapters(student: SegNet, teacher: SegNet) -> dict[int, Adapter]:
    """{stride: adapter} of the feature maps that both nets have.

    Raises:
        ConfigError: they share no stride.
    """
    sources, others = list_sources(student), list_sources(teacher)
    shared = find_shared(sources, others)
    return {
        stride: Adapter(
            source=sources[stride],
            width=_width(student, sources[stride]),
            teacher_width=_width(teacher, others[stride]),
        )
        for stride in shared
    }


def find_shared(student: Mapping[int, Any], teacher: Mapping[int, Any]) -> list[int]:
    """Strides in px that both have, finest first; ConfigError where there are none."""
    shared = [stride for stride in student if stride in teacher]
    if not shared:
        got = f"a student with maps at strides {list(student)} px and a teacher with maps at {list(teacher)} px"
        raise ConfigError(
            explain(got=got, need="one stride that both have", hint="a teacher with the levels of the net")
        )
    return shared


def _width(net: SegNet, source: str) -> int:
    return net.get_parameter(source).shape[0]
