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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"compression\.json cannot be read \(No such file or directory\)"):
        load_report(tmp_path)
