"""Which channels go: how much each is worth, and the least of them down to a ratio."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cellvision.compression.prune.gradients import GRADIENTS
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.parts import Part, Slices
from cellvision.errors import ConfigError, explain

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def score_channels(part: Part, importance: str) -> Tensor | None:
    """How much each channel of a part is worth; None where the layers cannot tell.

    "taylor" and "fisher" sum the absolute products of weights and gradients over the layers, gradients being what
    `take_gradients` left there. "magnitude" is what a channel carries times what its takers make of it: the squared
    scales of its normalisations, or the squared weights that make it where there are none (in front of a normalisation
    they say nothing: it undoes their size), times the squared weights that take it in. All are 1 on average, so that a
    layer counts as much as any other, however many weights it has.
    "bn_scale" is the mean absolute scale of the normalisations as it is: where layers compete, one whose scales were
    all pulled to 0 loses more than others (Liu et al. 2017).

    Args:
        part: any.
        importance: one of IMPORTANCES.

    Returns:
        (part.width,) float32 >= 0.

    Raises:
        ConfigError: "taylor" or "fisher", and a weight has no gradient.
    """
    sides: dict[str, list[Tensor]] = {"norms": [], "makers": [], "takers": []}
    for slices in part.slices:
        found = _score_weight(slices, importance)
        if found is not None:
            is_norm = isinstance(slices.layer, _NORMS)
            side = sides["norms" if is_norm else "makers" if slices.is_out else "takers"]
            side.append(torch.zeros(part.width).index_add_(0, slices.channels, found[slices.places]))
    scores = [each for side in sides.values() for each in side]
    if not scores:
        return None
    if importance == "bn_scale":
        return torch.stack(scores).mean(0)
    if importance in GRADIENTS:
        return _to_mean_1(torch.stack(scores).sum(0))
    carried, taken = sides["norms"] or sides["makers"], sides["takers"]
    worth = torch.ones(part.width)
    for side in (carried, taken):
        if side:
            worth = worth * torch.stack([_to_mean_1(each) for each in side]).sum(0)
    return _to_mean_1(worth)


def _to_mean_1(values: Tensor) -> Tensor:
    mean = values.mean()
    return values / mean if mean > 0 else values


def _score_weight(slices: Slices, importance: str) -> Tensor | None:
    """(length,) float32 of every place along the side of the layer, or None."""
    is_norm = isinstance(slices.layer, _NORMS)
    if importance == "bn_scale" and not is_norm:
        return None
    for name, tensor, dim in slices.list_tensors():
        if not isinstance(tensor, nn.Parameter) or not (name == slices.name or name == f"{slices.name}.weight"):
            continue
        others = [each for each in range(tensor.ndim) if each != dim]
        weight = tensor.detach().float()
        values = weight.abs() if importance == "bn_scale" else weight.square()
        if importance in GRADIENTS:
            if not tensor.requires_grad:
                return None  # frozen
            if tensor.grad is None:
                got = f"compress.prune.importance={importance}, and {name} has no gradient"
                raise ConfigError(explain(got=got, need="one of every weight", hint="a backward pass before the step"))
            values = (weight * tensor.grad.float()).abs()
        return (values.sum(others) if others else values).cpu()
    return None


class Chooser:
    """Chooses the same channels for the same ratio, and never fewer for a larger one."""

    def __init__(self, parts: Sequence[Part], options: PruneOptions, *, widths: Mapping[str, int]) -> None:
        """Score the channels.

        Args:
            parts: those that may lose channels are found among them.
            options: importance, scope, max_ratio and round_to.
            widths: {part name: channels before the first step}.

        Raises:
            ConfigError: nothing can be pruned, or "bn_scale" of scales that are all alike.
        """
        self.widths = dict(widths)
        self.ranks: dict[Part, Tensor] = {}
        self.lowest: dict[Part, int] = {}
        self.steps: dict[Part, int] = {}
        self.scopes: dict[object, list[tuple[float, int, Part]]] = defaultdict(list)
        spread = 0.0
        for at, part in enumerate(parts):
            scores = None if part.kept_because else score_channels(part, options.importance)
            if scores is None or part.width <= part.unit:
                continue
            units = scores.view(-1, part.unit).mean(1)
            spread = max(spread, float((units.max() - units.min()).abs()))
            scope = {"global": "net", "isomorphic": part.make, "local": at}[options.scope]
            self.ranks[part] = units.argsort(stable=True)
            self.steps[part] = step = math.lcm(part.unit, options.round_to)
            least = math.ceil(widths[part.name] * (1 - options.max_ratio) / step - 1e-9) * step
            self.lowest[part] = min(part.width, max(least, part.unit))
            self.scopes[scope] += [(score, at, part) for score in units.tolist()]
        for entries in self.scopes.values():
            entries.sort(key=lambda entry: entry[:2])
        _check(parts, self.ranks, options, spread)

    def choose(self, ratio: float) -> dict[Part, Tensor]:
        """(M,) int64 channels to remove from each part, so that ``ratio`` of all before the first step is gone.

        Fewer go where layers are at their lowest, and where whole units or ``round_to`` leave no other width.
        """
        counts: dict[Part, int] = {}
        for entries in self.scopes.values():
            counts |= self._count(entries, ratio)
        return {
            part: _spread(self.ranks[part][: count // part.unit], part.unit) for part, count in counts.items() if count
        }

    def _count(self, entries: Sequence[tuple[float, int, Part]], ratio: float) -> dict[Part, int]:
        """How many channels go from each part of a scope: the least of all first, while their part may lose some."""
        kept = {part: part.width for _, _, part in entries}
        before = sum(self.widths[part.name] for part in kept)
        left = sum(kept.values()) - math.ceil(before * (1 - ratio) - 1e-9)
        for _, _, part in entries:
            if kept[part] - part.unit < self.lowest[part]:
                continue
            if part.unit > left:
                break  # and not another one: what a smaller ratio removes, a larger one removes as well
            kept[part] -= part.unit
            left -= part.unit
        return {part: part.width - self._round(part, width) for part, width in kept.items()}

    def _round(self, part: Part, width: int) -> int:
        """The next width that is a multiple of what it has to be, or the one there is."""
        step = self.steps[part]
        return min(max(round(width / step) * step, self.lowest[part]), part.width) if width < part.width else width


def _spread(units: Tensor, size: int) -> Tensor:
    return (units.unsqueeze(1) * size + torch.arange(size)).flatten()


def _check(parts: Sequence[Part], open_parts: Mapping[Part, Tensor], options: PruneOptions, spread: float) -> None:
    if not open_parts:
        reasons = sorted({part.kept_because for part in parts if part.kept_because})
        got = f"no layer to prune by compress.prune.importance={options.importance} ({'; '.join(reasons)})"
        hint = "importance=magnitude" if options.importance == "bn_scale" else "protected=[]"
        raise ConfigError(explain(got=got, need="one or more", hint=f"compress.prune.{hint}"))
    if spread == 0 and options.importance == "bn_scale":
        got = "compress.prune.importance=bn_scale, and the scales of every layer are all alike"
        raise ConfigError(
            explain(got=got, need="scales that training has told apart", hint="compress.prune.importance=magnitude")
        )
