"""Confusion matrices as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def draw_confusions(confusions: dict[str, np.ndarray], classes: tuple[str, ...], path: Path) -> None:
    """Confusion matrices as one picture: true classes in rows, shares of the row in colour, counts as text.

    Of cells the background is no class: a true cell in the column "no cell" was missed, a predicted one in the row
    "no cell" is false, and its colour is the share of all cells predicted so.

    Args:
        confusions: (K, K) counts by "pixel" and "cell".
        classes: background first.
        path: picture to write.
    """
    figure = Figure(figsize=(5 * max(1, len(confusions)), 4.2), layout="constrained")
    for axes, (name, counts) in zip(
        np.atleast_1d(figure.subplots(1, len(confusions))), confusions.items(), strict=True
    ):
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        if name == "cell":
            shares[0] = counts[0] / np.maximum(counts.sum(axis=0), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ticks, names = range(len(classes)), ("no cell", *classes[1:]) if name == "cell" else classes
        axes.set(title=f"{name}s", xlabel="predicted", ylabel="true")
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        for row in ticks:
            for column in ticks:
                if name == "cell" and row == column == 0:
                    continue  # what is no cell in truth and prediction cannot be counted
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(path, dpi=110)
