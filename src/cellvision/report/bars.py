"""A compression run at a glance: accuracy, time, size and memory of every net, as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cellvision.report.lines import PER_MILLION, count_threads, show, show_points, show_times
from cellvision.report.looks import COLOURS, MEANINGS, escape, find_look, tidy
from cellvision.report.record import CompressionReport


def draw_bars(report: CompressionReport, path: Path) -> None:
    """A PNG with a panel for each quantity and a bar for each row, the base on top."""
    figure = Figure(figsize=(11, 2.2 + 0.62 * len(report.rows)), layout="constrained")
    (score, time), (size, memory) = figure.subplots(2, 2, sharey=True)
    changes = [report.compare(row, report.base) for row in report.rows]
    headline, threads = report.headlines[0], report.threads[0]
    scores = [row.accuracy.get(headline.score, 0.0) for row in report.rows]
    lost = [f"{show_points(each.lost_points.get(headline.score, float('nan')))} points" for each in changes]
    _add_bars(score, report, scores, lost, title=headline.words, form=".3f" if abs(headline.points) > 1 else ".1f")
    times = [row.find_latency(threads) for row in report.rows]
    _add_bars(
        time,
        report,
        [each.p50_ms for each in times],
        [show_times(change.latency[threads]) for change in changes],
        title=f"ms per image of {report.size[0]} x {report.size[1]} px, {count_threads(threads)} (line: to 95 %)",
        above=[max(0.0, each.p95_ms - each.p50_ms) for each in times],
    )
    megabytes = [row.size_bytes * PER_MILLION for row in report.rows]
    _add_bars(size, report, megabytes, [show_times(change.size) for change in changes], title="size of the graphs, MB")
    peaks = [row.peak_mib or 0.0 for row in report.rows]
    _add_bars(memory, report, peaks, [show_times(change.memory) for change in changes], title="peak memory, MiB")
    looks = list(dict.fromkeys(find_look(report, row) for row in report.rows))
    handles = [Patch(color=COLOURS[look], label=MEANINGS[look]) for look in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    processor = escape(str(report.machine.get("processor", "")))
    figure.suptitle(f"{escape(report.base.model)} on {report.fields} fields, {processor}", fontsize=10)
    figure.savefig(path, format="png", dpi=120)


def _add_bars(
    axes: Axes,
    report: CompressionReport,
    values: Sequence[float],
    changes: Sequence[str],
    *,
    title: str,
    form: str = "",
    above: Sequence[float] | None = None,
) -> None:
    places = range(len(values))
    colours = [COLOURS[find_look(report, row)] for row in report.rows]
    error = None if above is None else [[0.0] * len(values), list(above)]
    bars = axes.barh(places, values, color=colours, height=0.7, xerr=error, ecolor="0.2", capsize=2)
    texts = [
        (format(value, form) if form else show(value)) + (f"  ({change})" if row is not report.base and change else "")
        for value, change, row in zip(values, changes, report.rows, strict=True)
    ]
    axes.bar_label(bars, labels=texts, padding=4, fontsize=8)
    axes.set_yticks(places, [escape(row.name) for row in report.rows])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(
        0, 1.34 * max(*values, *(v + a for v, a in zip(values, above or [0.0] * len(values), strict=True)), 1e-9)
    )
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    tidy(axes)
