"""A compression run at a glance: accuracy, time, size and memory of every net, as bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cellvision.metrics.accuracy import Headline
from cellvision.report.lines import (
    ABOUT_FACTORS,
    ABOUT_POINTS,
    PER_MILLION,
    count_threads,
    show,
    show_points,
    show_times,
)
from cellvision.report.looks import COLOURS, MEANINGS, escape, find_look, tidy
from cellvision.report.record import Change, CompressionReport

COSTS = 6
"""Panels beside those of the headlines."""


def draw_bars(report: CompressionReport, path: Path) -> None:
    """A PNG with a panel for each headline and each cost, and in it a bar for each row, the base on top."""
    count = len(report.headlines) + COSTS
    columns = 3 if count % 3 == 0 else 2
    lines = math.ceil(count / columns)
    height = 1.2 + lines * (0.6 + 0.31 * len(report.rows))
    figure = Figure(figsize=(5.2 * columns, height), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes, headline in zip(panels, report.headlines, strict=False):
        _add_scores(axes, report, headline)
    for axes in panels[count:]:
        axes.set_axis_off()
    _add_costs(list(panels[len(report.headlines) : count]), report)
    looks = list(dict.fromkeys(find_look(report, row) for row in report.rows))
    handles = [Patch(color=COLOURS[look], label=MEANINGS[look]) for look in looks]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9,
        title=f"{ABOUT_POINTS}\n{ABOUT_FACTORS}", title_fontsize=8,
    )  # fmt: skip
    processor = escape(str(report.machine.get("processor", "")))
    figure.suptitle(f"{escape(report.base.model)} on {report.fields} fields, {processor}", fontsize=10)
    figure.savefig(path, format="png", dpi=120)


def _add_scores(axes: Axes, report: CompressionReport, headline: Headline) -> None:
    scores = [row.accuracy.get(headline.score, 0.0) for row in report.rows]
    is_share = abs(headline.points) > 1
    _add_bars(
        axes,
        report,
        scores,
        _list_changes(report, lambda change: f"{show_points(change.lost_points.get(headline.score, math.nan))} points"),
        title=headline.words if headline.points > 0 else f"{headline.words}, points (less is better)",
        form=".3f" if is_share else ".1f",
    )
    if is_share:  # the room for words beside the bars is no score
        axes.set_xticks([at for at in axes.get_xticks() if 0 <= at <= min(1.0, axes.get_xlim()[1])])


def _add_costs(panels: Sequence[Axes], report: CompressionReport) -> None:
    """Time, throughput, size, memory, parameters and multiplications."""
    time, *others = panels
    _add_times(time, report)
    most, batch, rows = report.threads[-1], report.batch, report.rows
    at_once = f"images/s, {count_threads(most)}, {batch} at once (more is better)"
    speeds = [row.find_latency(most, batch).images_per_s or 0.0 for row in rows]
    macs = f"MACs of {report.size[0]} x {report.size[1]} px, billion"
    costs: list[tuple[str, list[float], Callable[[Change], float | None]]] = [
        (at_once, speeds, lambda change: change.throughput),
        ("size of the graphs, MB", [row.size_bytes * PER_MILLION for row in rows], lambda change: change.size),
        ("peak memory, MiB", [row.peak_mib or 0.0 for row in rows], lambda change: change.memory),
        ("parameters, million", [row.parameters * PER_MILLION for row in rows], lambda change: change.parameters),
        (macs, [row.macs * PER_MILLION / 1000 for row in rows], lambda change: change.macs),
    ]
    for axes, (title, values, find) in zip(others, costs, strict=True):
        changes = _list_changes(report, lambda change, find=find: show_times(find(change)))  # type: ignore[misc]
        _add_bars(axes, report, values, changes, title=title)


def _add_times(axes: Axes, report: CompressionReport) -> None:
    """Bars to the median and a line on to 95 %: that is cut off where it would make slivers of the bars."""
    threads = report.threads[0]
    times = [row.find_latency(threads) for row in report.rows]
    limit = 1.2 * max(each.p50_ms for each in times)
    ends = [min(max(each.p95_ms, each.p50_ms), limit) for each in times]
    changes = _list_changes(report, lambda change: show_times(change.latency[threads]))
    for place, (each, end) in enumerate(zip(times, ends, strict=True)):
        is_cut = each.p95_ms > limit
        axes.plot([each.p50_ms, end], [place, place], color="0.2", linewidth=1.2, zorder=3)
        axes.plot(end, place, marker=">" if is_cut else "|", color="0.2", markersize=5, zorder=3)
        if is_cut:
            changes[place] = ", ".join(filter(None, (changes[place], f"95 %: {show(each.p95_ms)}")))
    _add_bars(
        axes,
        report,
        [each.p50_ms for each in times],
        changes,
        title=f"ms, {report.size[0]} x {report.size[1]} px, {count_threads(threads)}; line: to 95 %",
        ends=ends,
    )
    if limit in ends:  # its text is longer
        axes.set_xlim(0, 1.65 * limit)


def _list_changes(report: CompressionReport, tell: Callable[[Change], str]) -> list[str]:
    """What became of the base in each row, in words; "" for the base."""
    return ["" if row is report.base else tell(report.compare(row, report.base)) for row in report.rows]


def _add_bars(
    axes: Axes,
    report: CompressionReport,
    values: Sequence[float],
    changes: Sequence[str],
    *,
    title: str,
    form: str = "",
    ends: Sequence[float] | None = None,
) -> None:
    places = range(len(values))
    colours = [COLOURS[find_look(report, row)] for row in report.rows]
    axes.barh(places, values, color=colours, height=0.7)
    ends = ends or values
    for place, value, end, change in zip(places, values, ends, changes, strict=True):
        text = format(value, form) if form else show(value)
        text += f"  ({change})" if change else ""
        axes.annotate(text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [escape(row.name) for row in report.rows])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(0, 1.4 * max(*ends, 1e-9))
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    tidy(axes)
