"""The loss of a net: named terms, each with a weight, built from plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cellvision.checks import check_range
from cellvision.errors import ConfigError, check_choice, explain, unknown_name
from cellvision.ops.loss_term import ACTIVATIONS, ClassTerm, compute_weighted_mean
from cellvision.ops.overlap_losses import Dice, Tversky
from cellvision.ops.pixel_losses import BinaryCrossEntropy, Boundary, CrossEntropy, Focal, PixelTerm
from cellvision.types import IGNORE, Targets

CLASS_TERMS: dict[str, type[ClassTerm]] = {
    term.name: term for term in (CrossEntropy, BinaryCrossEntropy, Dice, Focal, Tversky, Boundary)
}
DISTANCE_METHODS = ("bce", "smooth_l1")


def to_one_hot(class_map: Tensor, class_count: int) -> Tensor:
    """(B, K, H, W) float32 of a (B, H, W) integer class map; all zero where the class is IGNORE.

    Example:
        >>> to_one_hot(torch.tensor([[[1, 255]]]), 2).flatten(1).tolist()
        [[0.0, 0.0, 1.0, 0.0]]
    """
    classes = torch.arange(class_count, device=class_map.device).view(1, -1, 1, 1)
    return (class_map.unsqueeze(1) == classes).float()


class Distance(nn.Module):
    """Loss of the distance map: how far sigmoid(logits) is from each pixel's depth in its cell.

    "smooth_l1" compares the values themselves. "bce" is how StarDist (Schmidt et al. 2018) trains the same quantity:
    its slope does not vanish where the sigmoid is flat, but its smallest value is the target's own entropy, and the
    valleys between touching cells came out too shallow to part them (docs/results.md).
    """

    name = "distance"

    def __init__(self, *, method: str = "smooth_l1", foreground_weight: float = 3.0) -> None:
        """``method``: one of DISTANCE_METHODS; a pixel of a cell weighs ``foreground_weight``, one outside 1."""
        super().__init__()
        check_choice("model.loss.distance.method", method, DISTANCE_METHODS)
        check_range("model.loss.distance.foreground_weight", foreground_weight, low=0, example=1.0)
        self.method = method
        self.foreground_weight = foreground_weight

    def forward(self, logits: Tensor, distance: Tensor, valid: Tensor) -> Tensor:
        """Scalar loss of (B, 1, H, W) logits against (B, H, W) distances in 0..1."""
        found = logits.squeeze(1)
        if self.method == "bce":
            losses = F.binary_cross_entropy_with_logits(found, distance, reduction="none")
        else:  # beta 0.1: squared within a tenth of the range, absolute beyond
            losses = F.smooth_l1_loss(found.sigmoid(), distance, beta=0.1, reduction="none")
        weights = torch.where(distance > 0, self.foreground_weight, 1.0) * valid
        return compute_weighted_mean(losses, weights)


class WeightedLoss(nn.Module):
    """Named losses of one batch, each already times its weight; their sum is what training minimises.

    Computed in float32 whatever the precision of the logits: sums over a batch of pixels overflow half precision.

    Example:
        >>> loss = WeightedLoss({"ce": {"weight": 1.0}, "dice": {"weight": 0.5}}, class_count=2)
        >>> cells = torch.tensor([[[0, 1], [1, 255]]])
        >>> targets = Targets(class_map=cells, distance=torch.zeros(1, 2, 2), label_image=cells, cell_classes=())
        >>> losses = loss({"classes": torch.zeros(1, 2, 2, 2)}, targets)
        >>> {name: round(value.item(), 3) for name, value in losses.items()}
        {'ce': 0.693, 'dice': 0.167}
    """

    def __init__(
        self,
        terms: Mapping[str, Mapping[str, Any] | None],
        *,
        class_count: int,
        activation: str = "softmax",
        has_distance: bool = False,
    ) -> None:
        """Build the terms.

        Args:
            terms: for each name ("ce", "bce", "dice", "focal", "tversky", "boundary", "distance") its "weight" >= 0
                and the arguments of its class; None leaves the term out.
            class_count: K, background included.
            activation: one of ACTIVATIONS: how the class logits become probabilities.
            has_distance: the net predicts a distance map; then, and only then, "distance" must be a term.

        Raises:
            ConfigError: a term or argument is unknown, out of range, or does not fit the net.
        """
        super().__init__()
        check_choice("model.activation", activation, ACTIVATIONS)
        chosen = {name: dict(given) for name, given in _check_terms(terms, has_distance).items()}
        self.class_count = class_count
        self.weights = {name: _take_weight(name, given) for name, given in chosen.items()}
        shared = {"activation": activation, "class_count": class_count}
        self.terms = nn.ModuleDict({name: _build_term(name, given, shared) for name, given in chosen.items()})

    def forward(self, logits: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """Scalar float32 losses by name.

        Args:
            logits: "classes" (B, K, H, W), under sigmoid (B, K-1, H, W) without the background; and "distance"
                (B, 1, H, W) where the net predicts one. Any floating dtype.
            targets: ``soft_classes`` take the place of ``class_map`` where given; pixels of class IGNORE never count,
                neither for the classes nor for the distance.
        """
        classes = logits["classes"]
        valid = (targets.class_map != IGNORE).float()
        target = targets.soft_classes
        if target is None:
            target = to_one_hot(targets.class_map, self.class_count)
        losses = {}
        with torch.autocast(classes.device.type, enabled=False):
            for name, term in self.terms.items():
                if name == "distance":
                    value = term(logits["distance"].float(), targets.distance, valid)
                else:
                    value = term(classes.float(), target.float(), valid)
                losses[name] = self.weights[name] * value
        return losses

    def set_statistics(self, class_pixels: Sequence[int]) -> None:
        """Fill automatic class weights from the number of training pixels of each class, background first."""
        for term in self.terms.values():
            if isinstance(term, PixelTerm):
                term.set_statistics(class_pixels)


def _check_terms(terms: Mapping[str, Mapping[str, Any] | None], has_distance: bool) -> dict[str, Mapping[str, Any]]:
    """The terms that are not left out; ConfigError for an unknown name or a distance that does not fit the net."""
    known = [*CLASS_TERMS, Distance.name]
    for name, given in terms.items():
        if name not in known:
            raise ConfigError(unknown_name("loss", f"model.loss.{name}", [f"model.loss.{n}" for n in known]))
        if given is not None and not isinstance(given, Mapping):
            hint = f"model.loss.{name}.weight=1.0"
            raise ConfigError(explain(got=f"model.loss.{name}={given!r}", need="a weight and arguments", hint=hint))
    chosen = {name: given for name, given in terms.items() if given is not None}
    if not chosen.keys() & CLASS_TERMS.keys():
        got = f"model.loss has the terms {', '.join(chosen) or '(none)'}"
        need = f"at least one on classes: {', '.join(CLASS_TERMS)}"
        raise ConfigError(explain(got=got, need=need, hint="model.loss.dice.weight=1.0"))
    if has_distance != (Distance.name in chosen):
        raise ConfigError(
            explain(
                got=f"model.loss {'lacks' if has_distance else 'has'} the term distance",
                need="it where the net predicts a distance map (kind viability), and only there",
                hint="model.loss.distance.weight=1.0" if has_distance else "model.loss.distance=null",
            )
        )
    return chosen


def _take_weight(name: str, given: dict[str, Any]) -> float:
    """The weight, removed from ``given``."""
    key = f"model.loss.{name}.weight"
    if "weight" not in given:
        raise ConfigError(explain(got=f"{key} is missing", need="a number from 0 up", hint=f"{key}=1.0"))
    weight = given.pop("weight")
    check_range(key, weight, low=0, example=1.0)
    return float(weight)


def _build_term(name: str, given: dict[str, Any], shared: dict[str, Any]) -> nn.Module:
    """The term made from its arguments; ConfigError lists those it has when one is unknown."""
    builder = Distance if name == Distance.name else CLASS_TERMS[name]
    known = ["weight", *(key for key in inspect.signature(builder).parameters if key not in shared)]
    for key in given:
        if key not in known:
            listed = [f"model.loss.{name}.{each}" for each in known]
            raise ConfigError(unknown_name("setting", f"model.loss.{name}.{key}", listed))
    return builder(**given) if name == Distance.name else builder(**given, **shared)
