"""A report as lines of text, one value per row of it: the same for the console and the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cellvision.report.record import Change, CompressionReport, ReportRow

PER_MILLION, PER_BILLION = 1e-6, 1e-9
ABOUT_POINTS = (
    "Beside scores: points better (+) or worse (-) than the uncompressed net; a viability error that rises is worse."
)

ABOUT_FACTORS = "Factors of times are medians over the rounds in which all nets took turns, not quotients of the p50s."


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity of every row.

    Attributes:
        label: what it is, with its unit.
        values: one per row of the report; "" where there is none.
        begins: whether a new section begins with it.
    """

    label: str
    values: tuple[str, ...]
    begins: bool = False


def list_lines(report: CompressionReport) -> list[Line]:
    """All quantities: as measured, with what became of the base's in brackets, then step by step."""
    return [*_list_totals(report), *_list_steps(report)]


def _list_totals(report: CompressionReport) -> list[Line]:
    def line(
        label: str, value: Callable[[ReportRow], float | None], change: Callable[[Change], float | None] | None = None
    ) -> Line:
        values = []
        for row in report.rows:
            shown = show(value(row))
            times = None if change is None or row is report.base else change(report.compare(row, report.base))
            values.append(shown if times is None else f"{shown} ({show_times(times)})")
        return Line(label=label, values=tuple(values))

    shown_at = f"of {report.size[0]} x {report.size[1]} px"
    lines = [_list_forms(report)]
    lines += [_list_scores(report, at) for at in range(len(report.headlines))]
    lines += [
        line("cells found", lambda row: row.cells),
        line("graphs, MB", lambda row: row.size_bytes * PER_MILLION, lambda change: change.size),
        line("parameters, million", lambda row: row.parameters * PER_MILLION, lambda change: change.parameters),
        line(f"MACs {shown_at}, billion", lambda row: row.macs * PER_BILLION, lambda change: change.macs),
    ]
    if any(row.zeros for row in report.rows):
        lines.append(line("weights that are 0, %", lambda row: 100 * row.zeros))
    if any(row.reached_ms is not None for row in report.rows):
        lines.append(_list_reached(report))
    for number in report.threads:
        words = f"ms, {count_threads(number)}"
        lines += [
            line(
                f"{words}, p50",
                lambda row, n=number: row.find_latency(n).p50_ms,  # type: ignore[misc]
                lambda change, n=number: change.latency[n],  # type: ignore[misc]
            ),
            line(f"{words}, p95", lambda row, n=number: row.find_latency(n).p95_ms),  # type: ignore[misc]
        ]
    most, batch = report.threads[-1], report.batch
    at_once = f"images/s, {count_threads(most)}, {batch} at once"
    lines.append(
        line(at_once, lambda row: row.find_latency(most, batch).images_per_s, lambda change: change.throughput)
    )
    return [*lines, line("peak MiB", lambda row: row.peak_mib, lambda change: change.memory)]


def _list_forms(report: CompressionReport) -> Line:
    forms = (row.precision + " (rounded only)" * row.rounded_only for row in report.rows)
    return Line(label="form", values=tuple(forms))


def _list_reached(report: CompressionReport) -> Line:
    """What was measured in the run and what was to be met, where a latency was the target."""
    values = (
        "" if row.reached_ms is None or row.asked_ms is None else f"{row.reached_ms:.4g} of {row.asked_ms:.4g}"
        for row in report.rows
    )
    return Line(label="ms behind the last cut, of those asked for", values=tuple(values))


def _list_scores(report: CompressionReport, at: int) -> Line:
    headline = report.headlines[at]
    values = []
    for row in report.rows:
        score = row.accuracy.get(headline.score)
        text = "" if score is None else f"{score:.3f}" if abs(headline.points) > 1 else f"{score:.1f}"
        lost = report.compare(row, report.base).lost_points.get(headline.score)
        values.append(text if lost is None or row is report.base else f"{text} ({show_points(lost)})")
    words = headline.words if headline.points > 1 else f"{headline.words}, points"
    return Line(label=words, values=tuple(values))


def _list_steps(report: CompressionReport) -> list[Line]:
    """What each row's own step did, against the row before."""
    changes = [None if row.before is None else report.compare(row, report.find(row.before)) for row in report.rows]

    def line(label: str, show_change: Callable[[Change], str]) -> Line:
        return Line(label=label, values=tuple("" if change is None else show_change(change) for change in changes))

    first = report.threads[0]
    return [
        Line(label="against", values=tuple(row.before or "" for row in report.rows), begins=True),
        *(
            line(
                f"{one.words} won, points",
                lambda change, score=one.score: show_points(change.lost_points.get(score, math.nan)),  # type: ignore[misc]
            )
            for one in report.headlines
        ),
        line("size", lambda change: show_times(change.size)),
        line("MACs", lambda change: show_times(change.macs)),
        line(f"time, {count_threads(first)}", lambda change: show_times(change.latency[first])),
    ]


def count_threads(number: int) -> str:
    """The number in words.

    Example:
        >>> count_threads(1), count_threads(2)
        ('1 thread', '2 threads')
    """
    return f"{number} thread{'s' * (number > 1)}"


def show(value: float | None) -> str:
    """Three digits, or all before the point; counts as they are; "" for None.

    Example:
        >>> [show(value) for value in (1234, 12.0, 1.234, 0.01234, 0.0, None)]
        ['1234', '12.0', '1.23', '0.0123', '0', '']
    """
    if value is None:
        return ""
    if isinstance(value, int) or value == 0 or value >= 100:
        return f"{value:.0f}"
    return f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"


def show_times(times: float | None) -> str:
    """So many times more or less.

    Example:
        >>> show_times(0.25), show_times(1.5), show_times(1.0)
        ('÷4.00', '×1.50', '×1.00')
    """
    if times is None:
        return ""
    if round(times, 2) == 1:
        return "×1.00"
    return f"÷{show(1 / times)}" if times < 1 else f"×{show(times)}"


def show_points(lost: float) -> str:
    """Points won, with their sign; "none" for NaN.

    Example:
        >>> show_points(0.5), show_points(-0.25), show_points(0.0)
        ('-0.50', '+0.25', '+0.00')
    """
    return f"{0.0 - lost:+.2f}" if math.isfinite(lost) else "none"
