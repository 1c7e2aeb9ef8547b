"""What every net promises, and what tasks, compression and export rely on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cellvision.bundle import Detecting
from cellvision.errors import ExportError, explain
from cellvision.types import DataStats, Targets

MAP_KINDS = ("semantic", "viability")
"""Nets that say something of every pixel; cells are separated afterwards."""

KINDS = (*MAP_KINDS, "instance")
"""And nets that find the cells themselves."""


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
        exportable: False where no bundle can be made of the net.
    """

    name: str
    kind: str
    in_channels: int
    classes: tuple[str, ...]
    stride: int
    outputs: tuple[str, ...]
    tiles: bool
    exportable: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphPart:
    """A part of the inference graph that becomes one file of a bundle.

    Attributes:
        role: see cellvision.bundle.Graph.
        module: takes the inputs by position and returns a tuple, its outputs.
        inputs: an example of each input, by name, in order; large enough that no free axis is 1.
        free_axes: for each input and output the axes of any length, with a name for that length.
        outputs: names in order.
    """

    role: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    free_axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


FREE_IMAGE_AXES = MappingProxyType({0: "batch", 2: "height", 3: "width"})


class _Whole(nn.Module):
    """A net with its results in the declared order: a graph's outputs have positions, a dict's have not."""

    def __init__(self, net: SegNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        results = self.net.forward(image)
        return tuple(results[name] for name in self.net.spec.outputs)


class SegNet(nn.Module, ABC):
    """A plain module with these additions.

    Attributes:
        spec: see NetSpec.
        config: plain data from which ``build_model(**config)`` makes the same structure again.
        detecting: how a graph of an instance net chooses detections, unless told otherwise; None for other kinds.
        report: lines that tell how the net began: weights loaded and left out.
        decided: arguments of another value than given, by which the same structure is made without outside weights.
    """

    spec: NetSpec
    config: dict[str, Any]
    detecting: Detecting | None = None
    report: Sequence[str] = ()
    decided: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The inference graph, normalisation, padding and decoding included.

        Args:
            images: (B, C, H, W) raw counts, uint8, uint16 or float32; any H, W >= 1.

        Returns:
            Kinds semantic and viability: "probabilities" (B, K, H, W) float32 in 0..1; for viability also "distance"
            (B, 1, H, W) float32 in 0..1.

            Kind instance, for D the most cells found in an image of the batch, each image's best cell first:
            "boxes" (B, D, 4) float32 left, top, right, bottom in px, right >= left and bottom >= top, which may reach
            beyond the image: cut off, they would squeeze the masks stretched over them; "scores" (B, D) float32 in
            0..1; "classes" (B, D) int64 in 1..K-1; "valid" (B, D) bool, False behind an image's last cell;
            "class_scores" (B, D, K-1) float32 in 0..1, each class on its own; "masks" (B, D, M, M) float32 in 0..1,
            stretched over the box. "mask_scores" (B, D) float32, score times predicted mask IoU, where the net rates
            its masks;
            "probabilities" as above where it also has a semantic branch.
        """

    def part(self, image: Tensor, *, detecting: Detecting | None = None, parted: bool = False) -> tuple[GraphPart, ...]:
        """The inference graph as it is exported: one part, or several that a runtime joins.

        Args:
            image: (B, C, H, W), an example of the input; B >= 2, and large enough that no map shrinks to 1 px.
            detecting: how candidates become detections; None for nets that say something of every pixel.
            parted: in the two parts "trunk" and "masks", without operators that some engines lack; instance nets only.

        Raises:
            ExportError: the net cannot be parted so.
        """
        if parted:
            got = f"net {self.spec.name!r} of kind {self.spec.kind} in parts"
            raise ExportError(explain(got=got, need="an instance net", hint="form=whole"))
        module = _Whole(self)
        axes = dict.fromkeys(("image", *self.spec.outputs), FREE_IMAGE_AXES)
        return (
            GraphPart(role="whole", module=module, inputs={"image": image}, free_axes=axes, outputs=self.spec.outputs),
        )

    @abstractmethod
    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """The net's raw results; ``decode`` and ``losses_from`` share them, so that validation runs the net once."""

    @abstractmethod
    def decode(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The results of ``forward`` from those of ``logits``."""

    @abstractmethod
    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; their sum is what training minimises.

        Every trainable parameter gets a finite gradient from them, also where no pixel or no cell counts.
        """

    @abstractmethod
    def losses_from(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The results of ``losses`` from those of ``logits``."""

    @abstractmethod
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Named feature maps, finest first: what distillation and pruning look at."""

    @abstractmethod
    def set_statistics(self, stats: DataStats) -> None:
        """Take normalisation and automatic class weights from the training data into buffers."""


@contextmanager
def fix_draws(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers each time, and leave those outside as they were.

    For losses in evaluation that look at some boxes only: with other draws each time they could not be compared.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


@contextmanager
def keep_modes(net: nn.Module) -> Iterator[None]:
    """Leave every module in the mode it was in: a frozen part of a net in training may be in evaluation."""
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
