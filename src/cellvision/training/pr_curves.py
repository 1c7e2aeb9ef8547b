"""Precision against recall as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cellvision.metrics.instances.coco_ap import PrCurve

_LARGEST_LEGEND = 12


def draw_pr_curves(curves: Mapping[str, PrCurve], path: Path, *, title: str = "") -> None:
    """A line per curve: which share of the cells is found (recall), and which share of the finds is right (precision).

    Precisions below 0, by which COCO's tables mark recalls without a value, and NaN leave a gap. A dot is at the chosen
    recall of a curve.

    Args:
        curves: by name, e.g. "mask, IoU 0.50". Up to twelve get a legend beside the lines, where it hides none; the
            names of more would be a picture of their own.
        path: picture to write; its ending decides the format.
        title: above the lines.

    Example:
        >>> import tempfile
        >>> recall = np.linspace(0, 1, 101)
        >>> curve = PrCurve(recall=recall, precision=1 - recall**4, chosen_recall=0.7)
        >>> draw_pr_curves({"IoU 0.50": curve}, Path(tempfile.mkdtemp()) / "pr.png")
    """
    has_legend = 0 < len(curves) <= _LARGEST_LEGEND
    figure = Figure(figsize=(7.5 if has_legend else 5.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        known = np.where(curve.precision >= 0, curve.precision, np.nan)
        # One point is no line; a marker shows it.
        marker = "." if np.count_nonzero(known == known) == 1 else ""
        (line,) = axes.plot(curve.recall, known, label=name, linewidth=1.5, marker=marker)
        if curve.chosen_recall is not None:
            place = (curve.chosen_recall, np.interp(curve.chosen_recall, curve.recall, known))
            axes.scatter(*place, color=line.get_color(), edgecolor="black", zorder=3)
    axes.set(xlabel="recall, share of the cells found", ylabel="precision, share of the finds right", title=title)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(color="0.9")
    if has_legend:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
    figure.savefig(path, dpi=110)
