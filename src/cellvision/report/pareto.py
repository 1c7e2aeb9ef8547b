"""Accuracy against time: which nets are worth having, of one run or of a sweep over several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from cellvision.errors import DataError, explain
from cellvision.metrics.accuracy import Headline
from cellvision.report.lines import ABOUT_FACTORS, count_threads
from cellvision.report.looks import COLOURS, MEANINGS, escape, find_look, tidy
from cellvision.report.record import CompressionReport

_PLACES = [(dx, dy) for r in (7, 16, 28, 42) for dx, dy in ((r, r), (-r, r), (r, -r), (-r, -r), (0, r), (0, -r))]
"""Where a label may stand, in points from its mark; the nearest that is free is taken."""

_LEADER = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A net of a run.

    Attributes:
        run: name of it, "" where there is one.
        row: name of the row.
        look: key of COLOURS.
        score: of the headline; less is better where its points are below 0.
        time: ms per image, or times the base's where runs are compared that began with the same net.
    """

    run: str
    row: str
    look: str
    score: float
    time: float

    @property
    def label(self) -> str:
        """What stands beside its mark."""
        return f"{self.run}: {self.row}" if self.run else self.row


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The nets of several runs by one measure.

    Attributes:
        points: all of them.
        front: those that no other beats, the fastest first.
        headline: that ``score`` is of.
        threads: that ``time`` is of.
        is_relative: whether times are divided by the base's in the same run.
    """

    points: tuple[Point, ...]
    front: tuple[Point, ...]
    headline: Headline
    threads: int
    is_relative: bool


def collect_points(reports: Mapping[str, CompressionReport], *, at: int = 0) -> Sweep:
    """The nets of runs by a headline and their time with the fewest threads.

    Times of several runs are divided by the base's, which took turns with them, where all began with the same net: ms
    of different hours tell more of what else the machine did. The base is then shown once.

    Args:
        reports: by the runs' names; where there is one, its name is not shown.
        at: number of the headline among those of the runs.

    Raises:
        DataError: no run, or runs of other headlines, image sizes or machines, which cannot be compared.
    """
    if not reports:
        raise DataError(explain(got="no run", need="one or more", hint="the folders of compression runs"))
    first = next(iter(reports.values()))
    for name, report in reports.items():
        _check_same(name, report, first)
    is_relative = len(reports) > 1 and len({each.base.checkpoint_sha256 for each in reports.values()}) == 1
    headline, threads = first.headlines[at], first.threads[0]
    points = []
    for name, report in reports.items():
        for row in report.rows:
            if headline.score not in row.accuracy or (is_relative and row is report.base and report is not first):
                continue
            latency = row.find_latency(threads)
            is_shared = len(reports) == 1 or (is_relative and row is report.base)
            points.append(
                Point(
                    run="" if is_shared else name,
                    row=row.name,
                    look=find_look(report, row),
                    score=row.accuracy[headline.score],
                    time=latency.ratio if is_relative else latency.p50_ms,
                )
            )
    front = find_front(points, sign=1.0 if headline.points > 0 else -1.0)
    return Sweep(points=tuple(points), front=front, headline=headline, threads=threads, is_relative=is_relative)


def find_front(points: Sequence[Point], *, sign: float = 1.0) -> tuple[Point, ...]:
    """The points that no other is better than in one way and at least as good as in the other, the fastest first.

    Args:
        points: any.
        sign: 1 where a larger score is better, else -1.

    Example:
        >>> marks = [("a", 0.9, 8.0), ("b", 0.8, 4.0), ("c", 0.7, 6.0)]
        >>> points = [Point(run="", row=row, look="step", score=score, time=time) for row, score, time in marks]
        >>> [point.row for point in find_front(points)]
        ['b', 'a']
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.time, -sign * point.score)):
        last = front[-1] if front else None
        is_like_last = last is not None and (point.time, point.score) == (last.time, last.score)
        if last is None or is_like_last or sign * point.score > sign * last.score:
            front.append(point)
    return tuple(front)


def draw_pareto(reports: Mapping[str, CompressionReport], path: Path) -> None:
    """A PNG of each headline against time, all nets labelled and the best joined by a line.

    Args:
        reports: as for `collect_points`, with its errors.
        path: of the PNG.
    """
    first = collect_points(reports)
    headlines = next(iter(reports.values())).headlines
    others = [collect_points(reports, at=at) for at in range(1, len(headlines))]
    sweeps = [first, *(sweep for sweep in others if sweep.points)]
    columns = 2 if len(sweeps) == 4 else min(3, len(sweeps))
    rows = math.ceil(len(sweeps) / columns)
    figure = Figure(figsize=(8.5 if columns == 1 else 6.0 * columns, 0.7 + 4.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    height, width = next(iter(reports.values())).size
    for axes, sweep in zip(panels, sweeps, strict=False):
        _draw_sweep(axes, sweep, size=f"{height} x {width} px")
    for unused in panels[len(sweeps) :]:
        unused.set_axis_off()
    figure.suptitle("Filled marks are nets that no other beats", fontsize=10)
    looks = list(dict.fromkeys(point.look for sweep in sweeps for point in sweep.points))
    handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS[look], label=MEANINGS[look]) for look in looks]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9,
        title=ABOUT_FACTORS if first.is_relative else None, title_fontsize=8,
    )  # fmt: skip
    figure.draw_without_rendering()
    for axes, sweep in zip(panels, sweeps, strict=False):
        _place_labels(figure, axes, sweep)
    figure.savefig(path, format="png", dpi=120)


def _draw_sweep(axes: Axes, sweep: Sweep, *, size: str) -> None:
    """Marks and front, without names."""
    times, scores = _list_corners(sweep.front)
    axes.plot(times, scores, color="0.6", linewidth=1.2, linestyle="--", zorder=1)
    for point in sweep.points:
        is_best = point in sweep.front
        axes.plot(
            point.time, point.score, "o", markersize=8, color=COLOURS[point.look], zorder=3,
            markerfacecolor=COLOURS[point.look] if is_best else "white", markeredgewidth=1.6,
        )  # fmt: skip
    unit = "times the time of the uncompressed net" if sweep.is_relative else "ms per image"
    axes.set_xlabel(f"{unit}, {size}, {count_threads(sweep.threads)}")
    axes.set_ylabel(sweep.headline.words + ("" if sweep.headline.points > 0 else ", points (less is better)"))
    axes.margins(0.14)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.grid(color="0.92")
    tidy(axes)


def _list_corners(front: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Times and scores along the best score that is to be had within a time: a step at each net of the front."""
    times = [point.time for point in front for _ in range(2)][1:]
    scores = [point.score for point in front for _ in range(2)][:-1]
    return times, scores


def _place_labels(figure: Figure, axes: Axes, sweep: Sweep) -> None:
    """Write each name where it covers no mark, no other name and no line, as near to its mark as there is room."""
    points = sweep.points
    if not points:
        return
    marks = axes.transData.transform([(point.time, point.score) for point in points])
    reach = figure.dpi / 72 * 5
    taken: list[tuple[float, ...]] = [(x - reach, y - reach, x + reach, y + reach) for x, y in marks]
    corners = axes.transData.transform(list(zip(*_list_corners(sweep.front), strict=True)))
    taken += [(*np.minimum(one, other) - 1, *np.maximum(one, other) + 1) for one, other in pairwise(corners)]
    inside = axes.get_window_extent()
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    for point in points:
        best: tuple[float, Annotation, tuple[float, ...]] | None = None
        for dx, dy in _PLACES:
            label = axes.annotate(
                escape(point.label), (point.time, point.score), (dx, dy), textcoords="offset points", fontsize=8,
                ha="left" if dx > 0 else "right" if dx < 0 else "center", va="bottom" if dy > 0 else "top",
                arrowprops=_LEADER if max(abs(dx), abs(dy)) > 10 else None,
            )  # fmt: skip
            box = tuple(map(float, Annotation.get_window_extent(label, renderer).extents))
            outside = max(0.0, box[2] - inside.x1, inside.x0 - box[0], box[3] - inside.y1, inside.y0 - box[1])
            cost = sum(_overlap(box, other) for other in taken) + 100 * outside
            if best is not None and cost >= best[0]:
                label.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (cost, label, box)
            if cost == 0:
                break
        assert best is not None
        taken.append(best[2])


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return float(np.clip(width, 0, None) * np.clip(height, 0, None))


def _check_same(name: str, report: CompressionReport, first: CompressionReport) -> None:
    pairs = [
        ("scores", [each.score for each in report.headlines], [each.score for each in first.headlines]),
        ("image size", report.size, first.size),
        ("fewest threads", report.threads[0], first.threads[0]),
        ("machine", report.machine, first.machine),
        ("fields", report.fields, first.fields),
    ]
    if report.base.checkpoint_sha256 == first.base.checkpoint_sha256:  # its scores tell of the fields
        pairs.append(("accuracy of the uncompressed net", _round(report), _round(first)))
    for what, one, other in pairs:
        if one != other:
            got = f"{name} has {what} {one}, and the first run {other}"
            raise DataError(explain(got=got, need="runs that were measured alike", hint="report them apart"))


def _round(report: CompressionReport) -> dict[str, float]:
    """The base's headlines to three digits, which are the same each time that they are measured on the same fields."""
    accuracy = report.base.accuracy
    return {each.score: round(accuracy[each.score], 3) for each in report.headlines if each.score in accuracy}
