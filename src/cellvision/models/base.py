"""What every net promises, and what tasks, compression and export rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cellvision.types import DataStats, Targets

KINDS = ("semantic", "viability")


@dataclass(frozen=True, kw_only=True)
class NetSpec:
    """What a net declares of itself; a declared no is tested as well as a yes.

    Attributes:
        name: registry name.
        kind: one of KINDS.
        in_channels: image channels.
        classes: background first.
        stride: a shift of the input by this many pixels shifts the output likewise.
        outputs: names of the results of ``forward`` in order.
        tiles: False where a layer sees the whole image, so that a tile's result depends on its surroundings
            beyond any overlap (squeeze-and-excitation, self-attention).
    """

    name: str
    kind: str
    in_channels: int
    classes: tuple[str, ...]
    stride: int
    outputs: tuple[str, ...]
    tiles: bool


class SegNet(nn.Module, ABC):
    """A plain module with these additions.

    Attributes:
        spec: see NetSpec.
        config: plain data from which ``build_model(**config)`` makes the same structure again.
    """

    spec: NetSpec
    config: dict[str, Any]

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The inference graph, normalisation, padding and decoding included.

        Args:
            images: (B, C, H, W) raw counts, uint8, uint16 or float32; any H, W >= 1.

        Returns:
            "probabilities": (B, K, H, W) float32 in 0..1; for viability also "distance": (B, 1, H, W) float32 in 0..1.
        """

    @abstractmethod
    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """The net's raw results; ``decode`` and ``losses_from`` share them, so that validation runs the net once."""

    @abstractmethod
    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results of ``forward`` from those of ``logits``."""

    @abstractmethod
    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; their sum is what training minimises."""

    @abstractmethod
    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The results of ``losses`` from those of ``logits``."""

    @abstractmethod
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Named feature maps, finest first: what distillation and pruning look at."""

    @abstractmethod
    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation and automatic class weights from the training data into buffers."""
