"""What is to be said of a compression run: whether it keeps its tolerance, and what is not as one would wish."""

from __future__ import annotations

import math
from collections.abc import Iterator

from cellvision.errors import explain
from cellvision.export.gate.decision import SLOWER
from cellvision.export.gate.latency import find_least_ratio
from cellvision.metrics.accuracy import Headline
from cellvision.report.lines import count_threads
from cellvision.report.record import CompressionReport, ReportRow

LATE = 0.05
"""Share by which a latency may be missed, as it would be at another moment."""


def find_fault(report: CompressionReport) -> str:
    """A sentence where the last step loses more than the tolerance, or cannot be compared, or a latency is missed."""
    return "; also ".join(filter(None, (_find_lost(report), _find_too_late(report))))


def _find_lost(report: CompressionReport) -> str:
    """A sentence where the last step loses more than the tolerance or cannot be compared; else ""."""
    base, final = report.base, report.final
    lost = report.compare(final, base).lost_points
    is_known = any(one.score in lost for one in report.deciding)
    faults = [] if is_known else ["has no accuracy, for there is no true cell to measure it by"]
    for headline in report.deciding:
        points = lost.get(headline.score, 0.0)
        if not points <= report.tolerance_points:  # so written that NaN does not pass
            known = points == points
            words = f"loses {points:.2f} points of" if known else "cannot be compared in"
            faults.append(f"{words} {headline.words} ({_show(base, headline)} to {_show(final, headline)})")
    if not faults:
        return ""
    limit = f"{report.tolerance_points:g} point{'s' * (report.tolerance_points != 1)}"
    hint = "more epochs after each step, a milder target, or a larger report.tolerance_points"
    return explain(
        got=f"{final.name} {' and '.join(faults)} against {base.name}",
        need=f"at most {limit} lost on {report.fields} fields",
        hint=f"{hint}{_name_milder(report)}",
    )


def _name_milder(report: CompressionReport) -> str:
    """The fastest other net of the report that keeps the tolerance, with its time, to go on with; "" without one."""
    kept = []
    for row in report.rows[1:]:
        change = report.compare(row, report.base)
        lost = [change.lost_points.get(one.score, math.nan) for one in report.deciding]
        if row.role != "scratch" and lost and all(points <= report.tolerance_points for points in lost):
            kept.append((change.latency[report.threads[0]], row.name))
    time, name = min(kept, default=(math.inf, ""))
    return f"; {name} keeps it, at {time:.2f} times the time of {report.base.name}" if time < 1 else ""


def find_warnings(report: CompressionReport) -> tuple[str, ...]:
    """Sentences on what no tolerance is of: other scores, latencies, slower steps, and simpler ways that do as well."""
    finders = (_find_lost_beside, _find_late, _find_slower, _find_better, _find_simpler, _find_idle_training)
    return tuple(sentence for find in finders for sentence in find(report))


def _find_lost_beside(report: CompressionReport) -> Iterator[str]:
    """Scores that the tolerance is not of, where they lose more than it."""
    base, final = report.base, report.final
    lost = report.compare(final, base).lost_points
    for one in report.headlines:
        if not one.decides and lost.get(one.score, 0.0) > report.tolerance_points:
            values = f"{_show(base, one)} to {_show(final, one)}"
            lost_words = f"loses {lost[one.score]:.2f} points of {one.words} ({values})"
            yield f"{final.name} {lost_words}, which the tolerance is not of"


def _find_too_late(report: CompressionReport) -> str:
    """A sentence where a latency is missed by more than times vary; else ""."""
    for sentence, asked_ms, times in _list_late(report):
        if times > 1 + LATE:
            hint = "a machine without other work, or a smaller compress.prune.latency_ms"
            return explain(got=sentence, need=f"at most {asked_ms:.4g}, as was asked for", hint=hint)
    return ""


def _find_late(report: CompressionReport) -> Iterator[str]:
    """A latency that is missed by as little as times vary, which is no fault."""
    for sentence, asked_ms, times in _list_late(report):
        if times <= 1 + LATE:
            yield f"{sentence}, where {asked_ms:.4g} were asked for"


def _list_late(report: CompressionReport) -> list[tuple[str, float, float]]:
    """The step that was to meet a latency and does not, what was asked, and so many times as long it takes.

    At most one: nets made from it have the same widths.
    """
    late = [
        (f"{row.name} took {row.reached_ms:.4g} ms behind its last cut", row.asked_ms, row.reached_ms / row.asked_ms)
        for row in report.rows
        if row.role == "step" and row.asked_ms is not None and row.reached_ms is not None
    ]
    return [each for each in late if each[2] > 1][:1]


def _find_slower(report: CompressionReport) -> Iterator[str]:
    for row in report.rows:
        if row.before is None or row.role == "scratch":
            continue
        before = report.find(row.before)
        if _describe_make(row) == _describe_make(before):  # more cells found, or other work on the machine
            continue
        times = report.compare(row, before).latency
        slow = [
            f"{times[number]:.2f} times as long with {count_threads(number)}"
            for number in report.threads
            if find_least_ratio(row.find_timing(number).times_ms, before.find_timing(number).times_ms) > SLOWER
        ]
        if len(slow) == len(report.threads):  # with some alone it is other work on the machine too often
            yield f"{row.name} is slower than {row.before}: it takes {' and '.join(slow)}"


def _find_better(report: CompressionReport) -> Iterator[str]:
    for row in report.rows:
        if row.role != "scratch" or row.before is None:
            continue
        beside = report.find(row.before)
        lost = report.compare(row, beside).lost_points
        won = [
            f"{-lost[one.score]:.2f} points of {one.words}" for one in report.headlines if lost.get(one.score, 0.0) < 0
        ]
        worse = [
            f"{lost[one.score]:.2f} points of {one.words}" for one in report.headlines if lost.get(one.score, 0) > 0
        ]
        if won:
            but = f" and worse by {' and '.join(worse)}" if worse else ""
            ratio = report.compare(row, beside).latency[report.threads[0]]
            yield (
                f"{row.name}, a small net trained on its own, does better than {beside.name} by"
                f" {' and '.join(won)}{but}, in {ratio:.2f} times its time"
            )


def _find_simpler(report: CompressionReport) -> Iterator[str]:
    """Rounding alone, of a net from before some steps, that beats what all of them made."""
    final = report.final
    for row in report.rows:
        if row.role != "static" or row.before == final.before:
            continue
        change = report.compare(row, final)
        known = [change.lost_points.get(one.score) for one in report.headlines]
        is_as_good = bool(known) and all(points is not None and points <= 0 for points in known)
        pairs = [(final.find_timing(number).times_ms, row.find_timing(number).times_ms) for number in report.threads]
        if is_as_good and all(find_least_ratio(longer, shorter) > 1 for longer, shorter in pairs):
            ratio = change.latency[report.threads[0]]
            yield (
                f"{row.name}, {row.before} rounded without training, is as accurate as {final.name}, in {ratio:.2f}"
                f" times its time and {change.size:.2f} times its size"
            )


def _find_idle_training(report: CompressionReport) -> Iterator[str]:
    """Rounding the same net without training, that is better than training with rounding."""
    final = report.final
    for row in report.rows:
        if row.role != "static" or row.before != final.before or final.precision != row.precision or final.rounded_only:
            continue
        lost = report.compare(row, final).lost_points
        known = [lost[one.score] for one in report.deciding if one.score in lost]
        if known and all(points <= 0 for points in known) and any(points < 0 for points in known):
            won = " and ".join(
                f"{-lost[one.score]:.2f} points of {one.words}"
                for one in report.deciding
                if lost.get(one.score, 0.0) < 0
            )
            yield f"{row.name}, rounded without training, is better than {final.name} by {won}"


def _describe_make(row: ReportRow) -> tuple[object, ...]:
    """What is the same of nets that differ in their weights alone."""
    return row.precision, row.parameters, row.macs


def _show(row: ReportRow, headline: Headline) -> str:
    score = row.accuracy.get(headline.score)
    return "none" if score is None else f"{score:.3f}" if abs(headline.points) > 1 else f"{score:.1f}"
