"""What each layer of a mixed precision costs, and what each try lost and took, as a picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cellvision.compression.qat.mixed import Mixed


def draw_mixed(mixed: Mixed, path: Path, *, score_name: str = "score", most: int = 60) -> None:
    """A PNG with what each of the ``most`` costliest layers costs, and what each try lost and took."""
    shown = mixed.layers[:most]
    figure = Figure(figsize=(9, 2.8 + 0.2 * len(shown)), layout="constrained")
    words = textwrap.fill(mixed.to_words(), width=110, break_on_hyphens=False)
    figure.suptitle(words, fontsize=9, color="black" if mixed.met else "tab:red")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = ["tab:orange" if one.kept else "tab:blue" for one in shown]
    left.barh(range(len(shown)), [one.points for one in shown], color=colours)
    left.set_yticks(range(len(shown)), [f"{one.layer} ({one.macs:.1%} of MACs)" for one in shown], fontsize=6)
    left.invert_yaxis()
    way = "alone rounded" if mixed.sensitivity == "alone" else "rounded too, against all others alone"
    left.set_xlabel(f"points of {score_name} lost with the layer {way}", fontsize=8)
    left.set_title("orange: stays float", fontsize=8)
    _draw_trials(right, mixed)
    figure.savefig(path, format="png", dpi=120)


def _draw_trials(axes: Axes, mixed: Mixed) -> None:
    """Points on the left, and ms on the right where they were measured; budgets are dashed, the choice is circled."""
    tried, chosen = sorted(mixed.tried, key=lambda one: one.count), mixed.chosen
    counts = [one.count for one in tried]
    rows = [(axes, "points lost without training", "tab:blue", [one.points for one in tried], mixed.budget.points)]
    marks = [chosen.points]
    if chosen.latency_ms is not None:
        times = [one.latency_ms or math.nan for one in tried]
        rows.append((axes.twinx(), "ms in ONNX Runtime", "tab:green", times, mixed.budget.latency_ms))
        marks.append(chosen.latency_ms)
    for (each, label, colour, values, limit), mark in zip(rows, marks, strict=True):
        each.plot(counts, values, "o-", color=colour)
        each.plot([chosen.count], [mark], "o", color=colour, markersize=11, fillstyle="none")
        if limit is not None:
            each.axhline(limit, color=colour, linestyle="--")
        each.set_ylabel(label, fontsize=8, color=colour)
    axes.set_xlim(-0.5, max(counts) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("layers kept float", fontsize=8)
    axes.set_title("dashed: budget; circle: chosen", fontsize=8)
