"""How much a score falls when one layer alone is pruned: what to protect, before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from cellvision.compression.prune.choice import Chooser
from cellvision.compression.prune.cost import count_positions, weigh
from cellvision.compression.prune.cut import build_cut
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.parts import list_parts
from cellvision.models.base import SegNet
from cellvision.runtime.maps.tile_run import Progress

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """A layer pruned alone.

    Attributes:
        layer: the first one of those that lose the same channels.
        width: its channels.
        left: channels that were left.
        score: of the net then.
        macs, parameters: shares of the whole net's that were left.
    """

    layer: str
    width: int
    left: int
    score: float
    macs: float
    parameters: float


def scan_sensitivity(
    net: SegNet,
    image: Tensor,
    evaluate: Callable[[SegNet], float],
    *,
    ratios: Sequence[float] = RATIOS,
    importance: str = "magnitude",
    protected: Sequence[str] = (),
    progress: Progress | None = None,
) -> list[SensitivityRow]:
    """Prune each layer alone by some ratios, without training, and score the net each time.

    Args:
        net: stays as it is; copies are pruned.
        image: (1, C, H, W) raw counts, for tracing.
        evaluate: score of a net in evaluation mode.
        ratios: shares of a layer's channels to remove, each in (0, 1).
        importance: one of IMPORTANCES; "taylor" and "fisher" need the net's gradients.
        protected: patterns of layers to leave out.
        progress: told after each net: (nets done, nets in all).

    Returns:
        A row for each layer and ratio, in the order of the layers; ratios that leave the same width give one row.
    """
    parts = list_parts(net, image, protected=protected)
    positions = count_positions(net, image)
    whole = weigh(net, positions, {})
    options = PruneOptions(importance=importance, scope="local", ratio=0.5, max_ratio=0.99)
    chooser = Chooser(parts, options, widths={part.name: part.width for part in parts})
    choices = [chooser.choose(ratio) for ratio in ratios]
    cases = [(part, chosen[part]) for part in parts for chosen in choices if part in chosen]
    cases = list({(part.name, len(removed)): (part, removed) for part, removed in cases}.values())
    rows = []
    for number, (part, removed) in enumerate(cases, start=1):
        trial = copy.deepcopy(net).eval()
        build_cut({part: removed}).apply(trial)
        cost = weigh(trial, positions, {})
        rows.append(
            SensitivityRow(
                layer=part.name,
                width=part.width,
                left=part.width - len(removed),
                score=float(evaluate(trial)),
                macs=cost.macs / whole.macs,
                parameters=cost.parameters / whole.parameters,
            )
        )
        if progress:
            progress(number, len(cases))
    return rows


def draw_sensitivity(
    rows: Sequence[SensitivityRow], path: Path, *, base: float, score_name: str = "score", mode: str = "max"
) -> None:
    """A PNG of how much worse the score gets: a line of marks per layer, the most sensitive on top.

    Args:
        rows: of ``scan_sensitivity``, at least one.
        path: of the PNG.
        base: score of the whole net.
        score_name: for the axis.
        mode: "max" where a higher score is better, else "min".
    """
    sign = 1 if mode == "max" else -1
    by_layer: dict[str, list[SensitivityRow]] = {}
    for row in rows:
        by_layer.setdefault(row.layer, []).append(row)
    names = sorted(by_layer, key=lambda name: max(sign * (base - row.score) for row in by_layer[name]))
    figure = Figure(figsize=(9, 1.5 + 0.22 * len(names)), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(names):
        falls = [sign * (base - row.score) for row in by_layer[name]]
        axes.plot([min(0.0, *falls), max(0.0, *falls)], [at, at], color="0.8", linewidth=1, zorder=1)
    places = [names.index(row.layer) for row in rows]
    shades = [1 - row.left / row.width for row in rows]
    marks = axes.scatter(
        [sign * (base - row.score) for row in rows], places, c=shades, cmap="viridis_r", vmin=0, vmax=1, s=22, zorder=2
    )
    labels = [f"{name}  ({by_layer[name][0].width})" for name in names]
    axes.set_yticks(np.arange(len(names)), labels, fontsize=7)
    axes.set_ylim(-0.8, len(names) - 0.2)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    change = "fall" if mode == "max" else "rise"
    axes.set_xlabel(f"{change} of the {score_name} from {base:.4g} with this layer alone pruned, not trained again")
    axes.set_title("sensitivity to pruning: layer (channels)", fontsize=10)
    figure.colorbar(marks, ax=axes, label="share of its channels removed", shrink=0.6, aspect=25)
    figure.savefig(path, format="png", dpi=120)
