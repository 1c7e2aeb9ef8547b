"""FCOS as the part that proposes boxes: its head, what it learns and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cellvision.errors import ConfigError, explain
from cellvision.models.centermask2.fcos.decode import Proposals, decode
from cellvision.models.centermask2.fcos.head import FcosHead, FcosOutputs
from cellvision.models.centermask2.fcos.losses import compute_fcos_losses
from cellvision.models.centermask2.fcos.targets import assign_targets
from cellvision.models.centermask2.ground_truth.cells import GroundTruth
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, FcosLosses


class Fcos(nn.Module):
    """Boxes, classes and scores from a feature pyramid.

    Attributes:
        strides: {level: px} of the pyramid levels used, finest first.
        decoding: how boxes are found; may be replaced at any time, as thresholds are chosen after training.
    """

    def __init__(
        self,
        *,
        head: FcosHead,
        strides: Mapping[int, int],
        assigning: FcosAssigning,
        losses: FcosLosses,
        decoding: FcosDecoding,
        training_decoding: FcosDecoding,
    ) -> None:
        """Join the parts.

        Args:
            head: made for as many levels as ``strides`` has.
            strides: {level: px}, finest first.
            assigning: which place learns which cell.
            losses: how they are learned.
            decoding: how boxes are found in evaluation.
            training_decoding: how boxes are found for the mask branch to learn from.

        Raises:
            ConfigError: the sizes of interest do not fit the levels, or the class weights the classes.
        """
        super().__init__()
        _check_sizes(assigning.sizes_of_interest, strides)
        if losses.class_weights is not None:
            key, example = "model.fcos_loss.class_weights", [1.0] * head.class_count
            _check_count(key, losses.class_weights, "cell classes", example=example)
        self.fcos_head = head
        self.strides = dict(strides)
        self.assigning = assigning
        self.loss_options = losses
        self.decoding = decoding
        self.training_decoding = training_decoding

    def predict(self, pyramid: Mapping[int, Tensor]) -> FcosOutputs:
        """What the head predicts for {level: (B, C, H, W)}; levels without a stride here are left out."""
        outputs: FcosOutputs = self.fcos_head([pyramid[level] for level in self.strides])
        return outputs

    def losses(self, outputs: FcosOutputs, truths: Sequence[GroundTruth]) -> dict[str, Tensor]:
        """The losses of ``compute_fcos_losses`` for one truth per image."""
        with torch.no_grad():
            targets = assign_targets(
                truths,
                strides=list(self.strides.values()),
                shapes=[maps.shape[-2:] for maps in outputs.class_logits],
                options=self.assigning,
            )
        return compute_fcos_losses(outputs, targets, self.loss_options)

    def detect(self, outputs: FcosOutputs) -> list[Proposals]:
        """Boxes of every image."""
        return decode(outputs, strides=list(self.strides.values()), options=self.decoding)

    @torch.no_grad()
    def propose(self, outputs: FcosOutputs) -> list[Proposals]:
        """Boxes of every image for the mask branch to learn from."""
        return decode(outputs, strides=list(self.strides.values()), options=self.training_decoding)


def _check_sizes(given: Sequence[float], strides: Mapping[int, int]) -> None:
    """Raise ConfigError unless there is one size fewer than levels; the example doubles, as the published ones do."""
    example = [8 * min(strides.values()) * 2**i for i in range(len(strides) - 1)]
    _check_count("model.assigning.sizes_of_interest", given, "levels - 1", example=example)


def _check_count(key: str, given: Sequence[float], what: str, *, example: Sequence[float]) -> None:
    if len(given) != len(example):
        got, need = f"{key} has {len(given)} numbers", f"{len(example)}, the number of {what}"
        raise ConfigError(explain(got=got, need=need, hint=f"{key}=[{','.join(f'{value:g}' for value in example)}]"))
