"""Pictures and page of a report, and which nets of a sweep are worth having."""

from dataclasses import replace
from io import StringIO
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cellvision.errors import DataError
from cellvision.report.files import FILES, write_report
from cellvision.report.pareto import Point, collect_points, draw_pareto, find_front
from cellvision.report.table import print_report
from report_rows import build_report, build_row, build_rows


def build_run(score, ms, **facts):
    base = build_row("base", score=0.912, ms=40.0, size=7_900_000, **facts)
    return build_report([base, build_row("prune", score=score, ms=ms, size=3_000_000, before="base")])


SWEEP = {"macs=0.7": build_run(0.91, 28.0), "macs=0.5": build_run(0.89, 30.0), "macs=0.3": build_run(0.88, 12.0)}


def test_the_front_is_what_no_other_net_beats():
    rng = np.random.default_rng(0)
    points = [
        Point(run="", row=str(at), look="step", score=float(score), time=float(time))
        for at, (score, time) in enumerate(rng.random((60, 2)).round(1))
    ]

    def is_beaten(one):
        return any(
            other.score >= one.score and other.time <= one.time and (other.score, other.time) != (one.score, one.time)
            for other in points
        )

    expected = {(one.score, one.time) for one in points if not is_beaten(one)}
    found = [(one.score, one.time) for one in find_front(points)]
    assert set(found) == expected
    assert found == sorted(found)
    errors = [replace(one, score=-one.score) for one in points]
    assert [(-one.score, one.time) for one in find_front(errors, sign=-1.0)] == found


def test_runs_of_one_net_are_compared_by_their_ratio_to_it():
    sweep = collect_points(SWEEP)
    assert sweep.is_relative
    assert [(point.label, point.time) for point in sweep.points] == [
        ("base", 1.0),
        ("macs=0.7: prune", 0.7),
        ("macs=0.5: prune", 0.75),
        ("macs=0.3: prune", 0.3),
    ]
    assert [point.label for point in sweep.front] == ["macs=0.3: prune", "macs=0.7: prune", "base"]


def test_runs_of_several_nets_are_compared_by_their_times():
    sweep = collect_points({"a": build_run(0.9, 20.0), "b": build_run(0.9, 21.0, digest="1")})
    assert not sweep.is_relative
    assert [(point.label, point.time) for point in sweep.points] == [
        ("a: base", 40.0), ("a: prune", 20.0), ("b: base", 40.0), ("b: prune", 21.0),
    ]  # fmt: skip


def test_one_run_is_shown_in_ms_without_its_name():
    sweep = collect_points({"run": build_run(0.9, 20.0)})
    assert [(point.label, point.time) for point in sweep.points] == [("base", 40.0), ("prune", 20.0)]


def test_runs_that_were_not_measured_alike_are_refused():
    with pytest.raises(DataError, match="no run; need one or more"):
        collect_points({})
    for change, words in (
        ({"size": (128, 128)}, r"image size \(128, 128\), and the first run \(256, 256\)"),
        ({"machine": {"processor": "another"}}, "machine"),
        ({"headlines": ()}, "scores"),
        ({"threads": (2,)}, "fewest threads 2"),
    ):
        with pytest.raises(DataError, match=f"b has {words}.*; need runs that were measured alike"):
            collect_points({"a": build_run(0.9, 20.0), "b": replace(build_run(0.9, 20.0), **change)})


def test_labels_cover_no_mark_and_no_other_label(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **how: (figures.append(figure), save(figure, *a, **how)))
    crowd = [
        build_row(f"net {at}", score=0.9 - 0.0004 * at, ms=20.0 + 0.1 * at, size=100, before="base") for at in range(6)
    ]
    draw_pareto({"": build_report([build_rows()[0], *crowd])}, tmp_path / "pareto.png")
    (axes,) = figures[0].axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 7
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    marks = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    assert len(marks) == 7
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
    inside = axes.get_window_extent()
    assert all(inside.x0 <= box.x0 and box.x1 <= figures[0].bbox.x1 for box in boxes)


def test_all_files_are_written_and_the_page_holds_the_pictures(tmp_path):
    write_report(build_report(warnings=("a < b",)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for name in ("compression.png", "pareto.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 30
    page = (tmp_path / "compression.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert all(each.get("src").startswith("data:image/png;base64,") for each in root.iter("img"))
    assert len(list(root.iter("img"))) == 2
    texts = ["".join(each.itertext()) for each in root.iter()]
    assert "warning: a < b" in texts
    assert "python compress.py ckpt='a <b>.ckpt' & more" in texts
    lengths = {len(list(row)) for row in root.iter("tr")}
    assert lengths == {7}


def test_the_table_shows_every_row_and_the_verdict():
    out = StringIO()
    print_report(build_report(fault="it lost [red]"), Console(file=out, width=160))
    lines = out.getvalue().splitlines()
    score = next(line for line in lines if "mean IoU " in line)
    assert score.split()[2:6] == ["0.912", "0.899", "(-1.30)", "0.907"]
    assert "tolerance missed: it lost [red]" in lines
    assert next(line for line in lines if "ms, 1 thread, p50" in line).split()[4:7] == ["40.0", "20.5", "(÷1.95)"]
