"""Colours and texts that the pictures of a report share."""

from __future__ import annotations

from matplotlib.axes import Axes

from cellvision.report.record import CompressionReport, ReportRow

COLOURS = {"base": "0.45", "step": "#2a6fbb", "static": "#e08a1e", "scratch": "#3a9a57"}
MEANINGS = {
    "base": "uncompressed",
    "step": "compressed, step by step",
    "static": "rounded after training only",
    "scratch": "small net trained on its own",
}


def find_look(report: CompressionReport, row: ReportRow) -> str:
    """Key of COLOURS and MEANINGS."""
    return "base" if row is report.base else row.role


def escape(text: str) -> str:
    """The text with nothing that a picture would take for a formula."""
    return text.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    """Leave out the frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
