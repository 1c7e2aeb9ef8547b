"""A report on the console."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cellvision.report.lines import ABOUT_FACTORS, ABOUT_POINTS, list_lines
from cellvision.report.record import CompressionReport

LABEL_WIDTH = 11
"""Of the longest word: narrow consoles break labels between words only."""

WORDS_WIDTH = 16
"""Of a value with its factor, and of what is beside the longest word of a label."""


def print_report(report: CompressionReport, console: Console | None = None) -> None:
    """Print a column for each net, which are few, and a line for each quantity; then what is to be said of them."""
    console = console or _open_console(len(report.rows))
    height, width = report.size
    title = f"{report.fields} fields; times of {height}x{width} px on {report.machine.get('processor', 'this machine')}"
    table = Table(box=SIMPLE_HEAD, title=Text(title))
    table.add_column("", min_width=LABEL_WIDTH)
    for row in report.rows:
        table.add_column(Text(row.name), justify="right", overflow="fold")
    for line in list_lines(report):
        if line.begins:
            table.add_section()
        table.add_row(line.label, *(Text(value) for value in line.values))
    console.print(table)
    console.print(Text(f"{ABOUT_POINTS} {ABOUT_FACTORS}"), soft_wrap=True)
    for text in describe_findings(report):
        console.print(Text(text), soft_wrap=True)


def _open_console(columns: int) -> Console:
    """Of a terminal as wide as that is, and of a file, whose width nobody knows, as wide as the table."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, LABEL_WIDTH + WORDS_WIDTH * (columns + 1))
    return console


def describe_findings(report: CompressionReport) -> list[str]:
    """A line for the tolerance, and one for each warning."""
    points = f"{report.tolerance_points:g} point{'s' * (report.tolerance_points != 1)}"
    scores = ", ".join(one.words for one in report.deciding)
    kept = f"tolerance kept: {report.final.name} loses at most {points} of {scores} against {report.base.name}"
    return [f"missed: {report.fault}" if report.fault else kept, *(f"warning: {t}" for t in report.warnings)]
