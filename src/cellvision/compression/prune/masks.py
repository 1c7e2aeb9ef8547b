"""Single weights held at zero: for research, as no backend here computes a sparse weight faster than a full one.

(NVIDIA's tensor cores can for two of four.) Without parametrisation: the weights stay plain parameters, and the masks
are laid over them again after every step of the optimizer. Nor are masks saved: a checkpoint's recipe names the weights
that have one, and what is zero in them stays so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cellvision.errors import ConfigError, check_choice, explain

PATTERNS = ("unstructured", "2:4")


def build_masks(
    net: nn.Module, *, pattern: str = "unstructured", sparsity: float = 0.5, protected: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Which weights of convolutions and linear layers stay: those of largest magnitude.

    Args:
        net: any.
        pattern: "unstructured" compares all weights of the net; "2:4" keeps two of every four neighbours along the
            flattened inputs of a channel, and leaves layers alone whose number of them four does not divide.
        sparsity: share of the weights to zero under "unstructured", in (0, 1).
        protected: patterns of layers to leave alone.

    Returns:
        {parameter name: bool tensor of its shape, True where it stays}.

    Raises:
        ConfigError: an unknown pattern, a share out of range, or no layer it fits.

    Example:
        >>> masks = build_masks(nn.Linear(8, 4), pattern="2:4")
        >>> masks["weight"].view(-1, 4).sum(1).unique().tolist()
        [2]
    """
    check_choice("compress.prune.masks", pattern, PATTERNS)
    if not 0 < sparsity < 1:
        got = f"compress.prune.sparsity={sparsity}"
        raise ConfigError(explain(got=got, need="a share in (0, 1)", hint="compress.prune.sparsity=0.5"))
    weights = {
        f"{name}.weight".lstrip("."): layer.weight.detach()
        for name, layer in list_layers(net).items()
        if not any(fnmatchcase(name, each) for each in protected)
    }
    if pattern == "2:4":
        weights = {name: weight for name, weight in weights.items() if weight[0].numel() % 4 == 0}
    if not weights:
        got = f"no layer for compress.prune.masks={pattern}"
        hint = "compress.prune.protected=[] compress.prune.masks=unstructured"
        raise ConfigError(explain(got=got, need="one or more that is not protected", hint=hint))
    return _keep_two_of_four(weights) if pattern == "2:4" else _keep_largest(weights, sparsity)


@torch.no_grad()
def apply_masks(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero what the masks leave out, in place, so that optimizers and averages keep their parameters.

    Call it after every step of the optimizer: momentum and weight decay move zeros too.
    """
    for name, mask in masks.items():
        net.get_parameter(name).mul_(mask.to(net.get_parameter(name).device))


def find_masks(net: nn.Module, recipe: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The masks that a net has by its recipe, as of ``build_masks``; none where no step of it laid any."""
    names = {name for record in recipe for name in record.get("masks", ())}
    return {name: net.get_parameter(name).detach() != 0 for name in sorted(names)}


def measure_sparsity(net: nn.Module) -> float:
    """Share of exact zeros among the weights of all convolutions and linear layers, in 0..1; 0 without any."""
    weights = [layer.weight for layer in list_layers(net).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / max(1, sum(weight.numel() for weight in weights))


def list_layers(net: nn.Module) -> dict[str, _ConvNd | nn.Linear]:
    """All layers whose weights are multiplied, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, _ConvNd | nn.Linear)}


def _keep_two_of_four(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    masks = {}
    for name, weight in weights.items():
        fours = weight.abs().reshape(-1, 4)
        kept = torch.zeros_like(fours, dtype=torch.bool)
        masks[name] = kept.scatter(1, fours.topk(2, dim=1).indices, True).view(weight.shape)
    return masks


def _keep_largest(weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """By rank and not by a threshold: equal weights would all stay or all go."""
    flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[flat.argsort(stable=True)[: round(sparsity * len(flat))]] = False
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
