"""What is said of a compression run: its tolerance, steps that made a net slower, a small net that does better."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cellvision.errors import ExportError
from cellvision.export.compressed.verdict import find_fault, find_warnings
from cellvision.metrics.accuracy import choose_headlines, choose_shown
from cellvision.report.lines import list_lines
from cellvision.report.record import load_report, write_record
from cellvision.report.table import describe_findings
from report_rows import build_report, build_row, build_rows


def test_the_tolerance_is_of_the_last_step_alone():
    report = build_report()
    assert find_fault(report) == ""
    report.raise_if_lost()
    strict = replace(report, tolerance_points=0.5)
    strict = replace(strict, fault=find_fault(strict))
    with pytest.raises(
        ExportError,
        match=r"^quantize loses 0\.60 points of mean IoU \(0\.912 to 0\.906\) against base; need at most 0\.5",
    ):
        strict.raise_if_lost()


def test_what_cannot_be_compared_does_not_pass():
    rows = list(build_rows())
    rows[3] = replace(rows[3], accuracy={})
    assert find_fault(build_report(rows)).startswith("quantize cannot be compared in mean IoU (0.912 to none)")
    nowhere = [replace(row, accuracy={}) for row in rows]
    assert "has no accuracy" in find_fault(build_report(nowhere))


def test_less_is_better_where_it_is():
    scores = [{"cell/f1": 0.9, "field/viability_error_pp": 4.0}, {"cell/f1": 0.91, "field/viability_error_pp": 6.5}]
    rows = [replace(row, accuracy=one) for row, one in zip(build_rows()[:2], scores, strict=True)]
    report = build_report(rows, headlines=choose_headlines("viability", ("background", "live", "dead")))
    assert find_fault(report).startswith("prune loses 2.50 points of viability error (4.0 to 6.5) against base")
    values = {line.label: line.values for line in list_lines(report)}
    assert values["found F1"] == ("0.900", "0.910 (+1.00)")
    assert values["viability error, points"] == ("4.0", "6.5 (-2.50)")


def test_a_step_that_makes_a_net_slower_is_told():
    rows = [
        build_row("base", score=0.9, ms=40.0, size=100),
        build_row("quantize", score=0.9, ms=52.0, size=30, before="base"),
        build_row("ptq", score=0.9, ms=41.0, size=30, before="base", role="static"),
    ]
    assert find_warnings(build_report(rows)) == (
        "quantize is slower than base: it takes 1.30 times as long with 1 thread and 1.30 times as long with 2 threads",
    )


def test_what_the_tolerance_is_not_of_is_told():
    scores = [{"cell/f1": 0.9, "pixel/miou": 0.88}, {"cell/f1": 0.9, "pixel/miou": 0.85}]
    rows = [replace(row, accuracy=one) for row, one in zip(build_rows()[:2], scores, strict=True)]
    report = build_report(rows, headlines=choose_shown("viability", ("background", "live", "dead")))
    assert find_fault(report) == ""
    assert find_warnings(report) == (
        "prune loses 3.00 points of mean IoU (0.880 to 0.850), which the tolerance is not of",
    )
    assert describe_findings(report)[0] == (
        "tolerance kept: prune loses at most 1 point of found F1, live/dead F1, viability error against base"
    )
    nowhere = [replace(row, accuracy={"pixel/miou": 0.9}) for row in rows]
    assert "has no accuracy" in find_fault(replace(report, rows=tuple(nowhere)))
    loaded = _write_and_load(report)
    assert [one.decides for one in loaded.headlines] == [True, True, True, False]


def _write_and_load(report):
    with TemporaryDirectory() as folder:
        write_record(report, Path(folder) / "compression.json")
        return load_report(Path(folder))


@pytest.mark.parametrize(("score", "is_told"), [(0.9061, True), (0.906, False), (0.905, False)])
def test_training_with_rounding_that_has_won_nothing_is_told(score, is_told):
    rows = list(build_rows())
    rows[4] = build_row(
        "distill ptq", score=score, ms=8.0, size=950_000, before="distill", role="static", precision="int8"
    )
    sentence = "distill ptq, rounded without training, is better than quantize by 0.01 points of mean IoU"
    assert (sentence in find_warnings(build_report(rows))) == is_told
    rows[3] = replace(rows[3], rounded_only=True)
    assert not any("is better than" in each for each in find_warnings(build_report(rows)))


def test_what_keeps_the_tolerance_all_the_same_is_named():
    rows = list(build_rows())
    rows[3] = replace(rows[3], accuracy={"pixel/miou": 0.9})
    rows[4] = replace(rows[4], accuracy={"pixel/miou": 0.912})
    fault = find_fault(build_report(rows))
    assert fault.startswith("quantize loses 1.20 points of mean IoU ")
    assert fault.endswith("report.tolerance_points; ptq keeps it, at 0.39 times the time of base")
    rows[2], rows[4] = (replace(row, accuracy={"pixel/miou": 0.8}) for row in (rows[2], rows[4]))
    assert find_fault(build_report(rows)).endswith("or a larger report.tolerance_points")


@pytest.mark.parametrize(
    ("reached_ms", "fault", "warnings"),
    [
        (20.0, "", ()),
        (20.9, "", ("prune took 20.9 ms behind its last cut, where 20 were asked for",)),
        (23.46, "prune took 23.46 ms behind its last cut; need at most 20, as was asked for; try: a machine wi", ()),
    ],
)
def test_a_latency_that_was_not_met_is_told_once(reached_ms, fault, warnings):
    base, *others = build_rows()[:4]
    rows = [base, *(replace(row, asked_ms=20.0, reached_ms=reached_ms) for row in others)]
    report = build_report(rows)
    assert find_fault(report)[: len(fault) or None] == fault
    assert find_warnings(report) == warnings
    strict = replace(report, tolerance_points=-99.0)
    assert find_fault(strict).startswith("quantize loses ")
    assert find_fault(strict).partition("; also ")[2][: len(fault) or None] == fault
    assert find_warnings(strict) == warnings
    values = {line.label: line.values for line in list_lines(report)}
    assert values["ms behind the last cut, of those asked for"] == ("", *[f"{reached_ms:.4g} of 20"] * 3)


def test_a_small_net_that_does_better_is_told():
    rows = list(build_rows())
    rows[5] = build_row("scratch", score=0.911, ms=20.4, size=3_900_000, before="distill", role="scratch")
    (warning,) = find_warnings(build_report(rows))
    assert warning.startswith(
        "scratch, a small net trained on its own, does better than distill by 0.40 points of mean IoU, in 1.00 times"
    )
    assert find_warnings(build_report()) == ()


def test_a_small_net_that_does_better_in_one_score_is_told_with_the_other():
    scores = {"distill": (0.638, 0.834), "scratch": (0.636, 0.846)}
    rows = [
        replace(
            row, accuracy=dict(zip(("mask/ap", "instance/ap_dsb_50"), scores.get(row.name, (0.6, 0.8)), strict=True))
        )
        for row in build_rows()
    ]
    report = build_report(rows, headlines=choose_headlines("instance", ("background", "cell")))
    (warning,) = [each for each in find_warnings(report) if each.startswith("scratch, ")]
    assert "better than distill by 1.20 points of TP" in warning
    assert " and worse by 0.20 points of mask AP, in " in warning


def test_rounding_alone_that_does_as_well_is_told():
    rows = list(build_rows())
    rows[4] = build_row("ptq", score=0.906, ms=7.0, size=2_050_000, before="base", role="static", precision="int8")
    (warning,) = find_warnings(build_report(rows))
    assert warning == (
        "ptq, base rounded without training, is as accurate as quantize, in 0.88 times its time and 2.16 times its size"
    )
    rows[4] = replace(rows[4], accuracy={})
    assert find_warnings(build_report(rows)) == ()


def test_the_same_graph_is_not_slower():
    """Whatever else the machine did meanwhile."""
    rows = [
        build_row("base", score=0.9, ms=40.0, size=100),
        build_row("distill", score=0.91, ms=52.0, size=100, before="base"),
    ]
    rows[1] = replace(rows[1], macs=rows[0].macs)
    assert find_warnings(build_report(rows)) == ()
