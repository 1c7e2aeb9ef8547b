"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from cellvision.report.bars import draw_bars
from cellvision.report.page import write_page
from cellvision.report.pareto import draw_pareto
from cellvision.report.record import RECORD_NAME, CompressionReport, write_record

PICTURES = {"At a glance": "compression.png", "Accuracy against time": "pareto.png"}
FILES = (RECORD_NAME, *PICTURES.values(), "compression.html")


def write_report(report: CompressionReport, folder: Path) -> None:
    """Write FILES into a folder; the numbers first, for they are what took long."""
    write_record(report, folder / RECORD_NAME)
    draw_bars(report, folder / "compression.png")
    draw_pareto({"": report}, folder / "pareto.png")
    write_page(report, {words: folder / name for words, name in PICTURES.items()}, folder / "compression.html")
