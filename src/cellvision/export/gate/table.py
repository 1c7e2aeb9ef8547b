"""What the gate measured and decided, as a table on stdout."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cellvision.export.gate.decision import Verdict
from cellvision.export.gate.measure import Measurement
from cellvision.metrics.accuracy import Headline

TIMES = "* median; in brackets the median over the rounds, in which all take turns, of times the fp32 graph's"


def print_verdict(verdict: Verdict, headlines: tuple[Headline, ...]) -> None:
    """Print a column for PyTorch and for each form, which are few, and a row for each number.

    Args:
        verdict: from `judge`.
        headlines: by which it was judged.
    """
    measured = (verdict.reference, *verdict.measurements)
    table = Table("", *(one.name for one in measured), box=SIMPLE_HEAD)
    for headline in headlines:
        words = headline.words if headline.points > 1 else f"{headline.words}, points"
        table.add_row(words, *(_show(one.accuracy.get(headline.score), ".3f") for one in measured))
    number = verdict.reference.fields
    table.add_row(
        f"cells found in {number} field{'s' * (number > 1)}",
        *("" if one.failure else str(one.cells) for one in measured),
    )
    for key, words, form in (
        ("cell_f1", "same cells as PyTorch, F1", ".4f"),
        ("max_difference", "largest difference", ".1e"),
        ("mean_difference", "mean difference", ".1e"),
    ):
        if any(key in one.agreement for one in measured):
            table.add_row(words, *(_show(one.agreement.get(key), form) for one in measured))
    for at, row in enumerate(verdict.measurements[0].latency):
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        words = f"ms, {threads}, {'x'.join(map(str, row['shape']))} *"
        table.add_row(words, *(_show_time(one, at) for one in measured))
    table.add_row("MB", *(_show(None if one.size_bytes is None else one.size_bytes / 1e6, ".2f") for one in measured))
    table.add_row("peak MiB", *(_show(one.memory.peak_mib if one.memory else None, ".0f") for one in measured))
    table.caption, table.caption_justify = TIMES, "left"
    said = ["kept" if one.name == verdict.kept else "passed" if one.passed else "refused" for one in verdict.findings]
    table.add_row("gate", "", *said)
    console = Console()
    console.print(table)
    for finding in verdict.findings:
        for remark in finding.remarks:
            console.print(f"{finding.name} {remark}")


def _show_time(measured: Measurement, at: int) -> str:
    if at >= len(measured.latency):
        return ""
    row = measured.latency[at]
    return f"{row['p50_ms']:.4g} (x{row['ratio']:.2f})"


def _show(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
