"""Mixed precision: which layers stay float so that rounding the others costs no more than it may, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

SENSITIVITIES = ("alone", "others")


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What rounding one layer costs.

    Attributes:
        layer: its name.
        points: of the score that are lost by it.
        macs: its share of the multiplications of all layers that can round.
        kept: whether it stays float.
    """

    layer: str
    points: float
    macs: float
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """How the layers that stay float were found.

    Attributes:
        layers: most costly first; empty where all could be rounded.
        kept: names of those that stay float.
        points: lost by rounding the others, without training.
        budget: of points.
        met: whether the loss is within the budget.
        tried: (layers kept float, points lost) of each try, in order.
        float_macs: share of the multiplications that stay float. It says where time may be lost, not how much: between
            float and rounded layers all values are converted. Times are measured on the bundle.
        sensitivity: how the cost of a layer was measured.
    """

    layers: tuple[LayerCost, ...]
    kept: tuple[str, ...]
    points: float
    budget: float
    met: bool
    tried: tuple[tuple[int, float], ...]
    float_macs: float
    sensitivity: str

    def to_record(self) -> dict[str, Any]:
        """Plain data for a checkpoint; a number of points that is none is None."""
        record = asdict(self) | {
            "kept": list(self.kept),
            "tried": [[count, _plain(lost)] for count, lost in self.tried],
        }
        record["layers"] = [asdict(one) | {"points": _plain(one.points)} for one in self.layers]
        return record | {"points": _plain(self.points)}


def choose_float(
    lose: Callable[[Sequence[str]], float],
    layers: Sequence[str],
    macs: Mapping[str, int],
    *,
    budget: float,
    sensitivity: str = "alone",
    tell: Callable[[str], None] | None = None,
) -> Mixed:
    """The fewest of the costliest layers that have to stay float.

    Every layer is measured once, if rounding all is too much; then the number of layers to keep is halved in, each time
    by rounding all others.

    Args:
        lose: points lost when all layers round but those of these names.
        layers: that can round.
        macs: multiplications by layer.
        budget: most points that may be lost.
        sensitivity: one of SENSITIVITIES.
        tell: called with a line on the progress.
    """
    say = tell or (lambda line: None)
    tried = [(0, lose([]))]
    say(f"all {len(layers)} layers rounded: {tried[0][1]:.2f} points lost")
    ranked: list[LayerCost] = []
    if not tried[0][1] <= budget:
        ranked = _rank(lose, layers, macs, lost=tried[0][1], sensitivity=sensitivity, tell=say)
        low, high = 0, len(ranked)  # too few, and enough: with all of them float nothing is lost
        while high - low > 1:
            count = (low + high) // 2
            tried.append((count, lose([one.layer for one in ranked[:count]])))
            say(f"{count} layers kept float: {tried[-1][1]:.2f} points lost")
            low, high = (low, count) if tried[-1][1] <= budget else (count, high)
    within = [(count, lost) for count, lost in tried if lost <= budget]
    count, lost = min(within) if within else min(tried, key=lambda one: np.nan_to_num(one[1], nan=np.inf))
    kept = [one.layer for one in ranked[:count]]
    costs = [LayerCost(layer=one.layer, points=one.points, macs=one.macs, kept=one.layer in kept) for one in ranked]
    return Mixed(
        layers=tuple(costs),
        kept=tuple(kept),
        points=lost,
        budget=budget,
        met=bool(within),
        tried=tuple(tried),
        float_macs=sum(one.macs for one in costs if one.kept),
        sensitivity=sensitivity,
    )


def draw_mixed(mixed: Mixed, path: Path, *, score_name: str = "score", most: int = 60) -> None:
    """A PNG with what each of the ``most`` costliest layers costs, and what was lost with some of them kept float."""
    shown = mixed.layers[:most]
    figure = Figure(figsize=(9, 2.5 + 0.2 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = ["tab:orange" if one.kept else "tab:blue" for one in shown]
    left.barh(range(len(shown)), [one.points for one in shown], color=colours)
    left.set_yticks(range(len(shown)), [f"{one.layer} ({one.macs:.1%} of MACs)" for one in shown], fontsize=6)
    left.invert_yaxis()
    way = "alone rounded" if mixed.sensitivity == "alone" else "rounded too, against all others alone"
    left.set_xlabel(f"points of {score_name} lost with the layer {way}", fontsize=8)
    left.set_title("orange: stays float", fontsize=8)
    tried = sorted(mixed.tried)
    right.plot([count for count, _ in tried], [lost for _, lost in tried], "o-")
    right.axhline(mixed.budget, color="0.5", linestyle="--", label="budget")
    right.set_xlabel("layers kept float", fontsize=8)
    right.set_ylabel("points lost without training", fontsize=8)
    right.legend(fontsize=7)
    figure.savefig(path, format="png", dpi=120)


def _rank(
    lose: Callable[[Sequence[str]], float],
    layers: Sequence[str],
    macs: Mapping[str, int],
    *,
    lost: float,
    sensitivity: str,
    tell: Callable[[str], None],
) -> list[LayerCost]:
    total = sum(macs.get(layer, 0) for layer in layers) or 1
    found = []
    for number, layer in enumerate(layers, start=1):
        others = [other for other in layers if other != layer]
        points = lose(others) if sensitivity == "alone" and others else lost - lose([layer])
        found.append(LayerCost(layer=layer, points=points, macs=macs.get(layer, 0) / total))
        if number % 10 == 0 or number == len(layers):
            tell(f"sensitivity: {number} of {len(layers)} layers")
    return sorted(found, key=lambda one: -np.nan_to_num(one.points, nan=np.inf))


def _plain(points: float) -> float | None:
    return float(points) if np.isfinite(points) else None
