"""Precision against recall as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

_LARGEST_LEGEND = 12


def draw_pr_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, *, title: str = "") -> None:
    """A line per curve: which share of the cells is found (recall), and which share of the finds is right (precision).

    Precisions below 0, by which COCO's tables mark recalls without a value, and NaN leave a gap.

    Args:
        curves: by name, e.g. "mask, IoU 0.50": (recall, precision), (n,) floats in 0..1, recall ascending. Up to twelve
            get a legend beside the lines, where it hides none; the names of more would be a picture of their own.
        path: picture to write; its ending decides the format.
        title: above the lines.

    Example:
        >>> import tempfile
        >>> recall = np.linspace(0, 1, 101)
        >>> draw_pr_curves({"IoU 0.50": (recall, 1 - recall**4)}, Path(tempfile.mkdtemp()) / "pr.png")
    """
    has_legend = 0 < len(curves) <= _LARGEST_LEGEND
    figure = Figure(figsize=(7.5 if has_legend else 5.5, 5), layout="constrained")
    axes = figure.subplots()
    for name, (recall, precision) in curves.items():
        known = np.where(precision >= 0, precision, np.nan)
        # One point is no line; a marker shows it.
        axes.plot(recall, known, label=name, linewidth=1.5, marker="." if np.count_nonzero(known == known) == 1 else "")
    axes.set(xlabel="recall, share of the cells found", ylabel="precision, share of the finds right", title=title)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    axes.grid(color="0.9")
    if has_legend:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)
    figure.savefig(path, dpi=110)
