"""A report as data: what follows from its numbers, and what its file holds."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cellvision.errors import DataError
from cellvision.report.lines import list_lines
from cellvision.report.record import load_report, write_record
from report_rows import build_report, build_rows


def test_changes_are_quotients_of_what_was_measured():
    report = build_report()
    change = report.compare(report.find("quantize"), report.base)
    assert change.size == 950_000 / 7_900_000
    assert change.macs == pytest.approx(0.2, abs=1e-9)
    assert change.latency == {1: pytest.approx(0.2), 2: pytest.approx(0.2)}
    assert change.throughput == pytest.approx(5)
    assert change.memory == pytest.approx(100.95 / 107.9)
    assert change.lost_points == {"pixel/miou": pytest.approx(0.6)}


def test_times_are_compared_round_by_round():
    """A neighbour that takes the processor for some rounds slows both alike, and leaves the quotient alone."""
    report = build_report()
    first, second = report.rows[:2]
    busy = np.repeat([1.0, 3.0, 1.0], 5)
    slowed = []
    for row in (first, second):
        timings = tuple(replace(each, times_ms=tuple(busy * each.times_ms)) for each in row.timings)
        slowed.append(replace(row, timings=timings))
    assert report.compare(slowed[1], slowed[0]).latency == report.compare(second, first).latency


def test_the_file_gives_the_report_back(tmp_path):
    report = build_report(fault="too much", warnings=("slow",))
    write_record(report, tmp_path / "compression.json")
    assert load_report(tmp_path) == report == load_report(tmp_path / "compression.json")
    plain = json.loads((tmp_path / "compression.json").read_text())
    assert (plain["passed"], plain["final"]) == (False, "quantize")
    assert plain["rows"][3]["against_before"]["latency"]["1"] == pytest.approx(8 / 20.4)


def test_what_is_unknown_is_null_in_the_file(tmp_path):
    rows = list(build_rows())
    rows[3] = replace(rows[3], accuracy={}, peak_mib=None)
    report = build_report(rows)
    write_record(report, tmp_path / "compression.json")
    plain = json.loads((tmp_path / "compression.json").read_text())
    assert plain["rows"][3]["against_base"]["memory"] is None
    assert plain["rows"][3]["against_base"]["lost_points"] == {"pixel/miou": None}
    values = {line.label: line.values[3] for line in list_lines(report)}
    assert (values["peak MiB"], values["mean IoU"], values["mean IoU won, points"]) == ("", " (none)", "none")


@pytest.mark.parametrize("text", ['{"format": 9}', "[]", "not json", '{"format": 1, "rows": []}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "compression.json").write_text(text)
    with pytest.raises(DataError, match=r"compression\.json is no report of a compression run .*; need"):
        load_report(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("rows",), [], "it needs rows: the net before, first, and a step"),
        (("rows", 0, "role"), "static", "it needs rows: the net before"),
        (("rows", 1, "role"), "x", r"rows\.1\.role: Input should be 'step', 'static' or 'scratch'"),
        (("rows", 1, "name"), "base", "it needs rows: each its own name"),
        (("rows", 1, "before"), "nobody", "it needs rows: before"),
        (("rows", 0, "accuracy"), None, r"rows\.0\.accuracy: "),
        (("rows", 0, "accuracy", "pixel/miou"), "high", r"rows\.0\.accuracy\.pixel/miou: .* number"),
        (("rows", 0, "accuracy", "pixel/miou"), None, r"rows\.0\.accuracy\.pixel/miou: "),
        (("rows", 0, "accuracy", "pixel/miou"), float("nan"), "NaN is no number"),
        (("rows", 1, "timings"), [], "it needs timings of all threads of prune"),
        (("rows", 1, "timings", 0, "latency", "p50_ms"), None, r"rows\.1\.timings\.0\.latency\.p50_ms: "),
        (("rows", 1, "timings", 0, "times_ms"), [1.0], "it needs times of all rounds of prune"),
        (("rows", 1, "peak_mib"), 0, "it needs sizes above 0 of prune"),
        (("rows", 1, "size_bytes"), 0, "it needs sizes above 0 of prune"),
        (("rows", 1, "size_bytes"), "3600000", r"rows\.1\.size_bytes: .* integer"),
        (("headlines",), [], "it needs headlines"),
        (("threads",), [], "it needs threads"),
        (("threads",), [2, 1], "it needs threads"),
        (("size",), [3], r"size\.1: Field required"),
        (("batch",), 0, "it needs numbers above 0"),
        (("warnings",), "slow", r"warnings: "),
    ],
)
def test_a_file_that_was_changed_by_hand_is_refused_with_the_place(tmp_path, place, value, said):
    path = tmp_path / "compression.json"
    write_record(build_report(), path)
    plain = part = json.loads(path.read_text())
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(plain))
    with pytest.raises(
        DataError, match=rf"compression\.json is no report of a compression run \({said}.*; need .*; try"
    ):
        load_report(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"compression\.json cannot be read \(No such file or directory\)"):
        load_report(tmp_path)
