"""Viability field by field: predicted with its interval, true, and what thresholds alone would have said."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cellvision.runtime.viability import Viability


@dataclass(frozen=True, kw_only=True)
class FieldRow:
    """One field: cells by class as predicted, as annotated, and as the Otsu baseline sees them (None without one)."""

    name: str
    predicted: Viability
    true: Viability
    otsu: Viability | None = None


def write_field_table(rows: Sequence[FieldRow], path: Path) -> None:
    """A CSV with one line per field; percentages are empty where a field has no cell."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        columns = ("live", "dead", "viability_percent", "low_percent", "high_percent")
        sources = ("predicted", "true", "otsu")
        writer.writerow(["field", *(f"{source}_{column}" for source in sources for column in columns)])
        for row in rows:
            found = (row.predicted, row.true, row.otsu)
            writer.writerow([row.name, *(value for one in found for value in _to_columns(one))])


def draw_field_viability(rows: Sequence[FieldRow], path: Path) -> None:
    """Predicted against true viability as a picture, 95 % Wilson intervals as bars, the baseline as crosses."""
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.8", linewidth=1)
    known = [row for row in rows if row.true.viability is not None and row.predicted.viability is not None]
    points = np.array([[row.true.viability, row.predicted.viability] for row in known], float).reshape(-1, 2) * 100
    spans = np.array([[row.predicted.low, row.predicted.high] for row in known], float).reshape(-1, 2) * 100
    reach = np.abs(spans - points[:, 1:]).T
    axes.errorbar(points[:, 0], points[:, 1], yerr=reach, fmt="o", markersize=5, capsize=2, label="net, 95 % interval")
    both = [(row.true.viability, row.otsu.viability) for row in known if row.otsu and row.otsu.viability is not None]
    if both:
        axes.plot(*(100 * np.array(both, float).T), "x", color="tab:red", label="Otsu thresholds")
    axes.set(xlabel="true viability, %", ylabel="predicted viability, %", xlim=(-3, 103), ylim=(-3, 103))
    axes.set_title("held-out fields")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def _to_columns(found: Viability | None) -> tuple[str, ...]:
    if found is None:
        return ("",) * 5
    shares = (found.viability, found.low, found.high)
    return (str(found.live), str(found.dead), *("" if share is None else f"{100 * share:.2f}" for share in shares))
