"""Pictures and page of a report, and which nets of a sweep are worth having."""

from dataclasses import replace
from io import StringIO
from itertools import combinations, pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from cellvision.errors import DataError
from cellvision.metrics.accuracy import choose_headlines
from cellvision.report.bars import draw_bars
from cellvision.report.files import FILES, write_report
from cellvision.report.lines import ABOUT_FACTORS, ABOUT_POINTS
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


def test_points_that_are_alike_are_both_in_the_front():
    points = [Point(run="", row=row, look="step", score=0.9, time=4.0) for row in "ab"]
    assert [point.row for point in find_front(points)] == ["a", "b"]


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
        ({"fields": 9999}, "fields 9999"),
    ):
        with pytest.raises(DataError, match=f"b has {words}.*; need runs that were measured alike"):
            collect_points({"a": build_run(0.9, 20.0), "b": replace(build_run(0.9, 20.0), **change)})


def test_one_net_with_two_accuracies_was_scored_on_other_fields():
    first, second = build_run(0.9, 20.0), build_run(0.9, 20.0)
    again, other = (
        replace(second, rows=(replace(second.base, accuracy={"pixel/miou": score}), *second.rows[1:]))
        for score in (first.base.accuracy["pixel/miou"] + 1e-6, 0.5)
    )
    assert len(collect_points({"a": first, "b": again}).points) == 3
    with pytest.raises(DataError, match=r"b has accuracy of the uncompressed net .*: 0\.5}, and the first"):
        collect_points({"a": first, "b": other})


@pytest.fixture
def figures(monkeypatch):
    """Those that are saved."""
    found, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **how: (found.append(figure), save(figure, *a, **how)))
    return found


def build_viability():
    scores = {"cell/f1": 0.9, "cell/live_dead_f1": 0.8, "field/viability_error_pp": 3.0}
    rows = [
        replace(row, accuracy={name: score - 0.01 * at for name, score in scores.items()})
        for at, row in enumerate(build_rows())
    ]
    return build_report(rows, headlines=choose_headlines("viability", ("background", "live", "dead")))


def test_labels_cover_no_mark_and_no_other_label(tmp_path, figures):
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


def test_labels_stand_clear_of_the_line_of_the_best(tmp_path, figures):
    rows = [("base", 0.912, 40.0), ("quantize", 0.85, 10.0), ("ptq", 0.88, 20.0), ("distill", 0.905, 20.8)]
    draw_pareto({"": build_report([build_row(n, score=s, ms=ms, size=100) for n, s, ms in rows])}, tmp_path / "a.png")
    (axes,) = figures[0].axes
    front = next(line for line in axes.lines if line.get_marker() == "None")
    corners = axes.transData.transform(front.get_xydata())
    along = np.concatenate([np.linspace(one, other, 400) for one, other in pairwise(corners)])
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert boxes.keys() == {name for name, *_ in rows}
    crossed = {name for name, box in boxes.items() if any(box.contains(*place) for place in along)}
    assert not crossed


def test_every_headline_is_drawn(tmp_path, figures):
    report = build_viability()
    draw_bars(report, tmp_path / "bars.png")
    draw_pareto({"": report}, tmp_path / "pareto.png")
    bars, pareto = figures
    words = [headline.words for headline in report.headlines]
    assert len(words) == 3
    for panel, headline in zip(bars.axes, report.headlines, strict=False):
        assert panel.get_title(loc="left").startswith(headline.words)
        scores = [row.accuracy[headline.score] for row in report.rows]
        assert [bar.get_width() for bar in panel.patches] == scores
    assert [max(panel.get_xticks()) for panel in bars.axes[:2]] == [1.0, 1.0]  # no score is higher
    assert [panel.get_title(loc="left")[:4] for panel in bars.axes[3:]] == [
        "ms, ",
        "imag",
        "size",
        "peak",
        "para",
        "MACs",
    ]
    assert [panel.get_ylabel().removesuffix(", points (less is better)") for panel in pareto.axes] == words
    marks = [[line.get_xydata()[0, 1] for line in panel.lines if line.get_marker() == "o"] for panel in pareto.axes]
    assert marks == [[row.accuracy[each.score] for row in report.rows] for each in report.headlines]


def test_a_headline_that_no_net_has_takes_no_room(tmp_path, figures):
    rows = [replace(row, accuracy={"cell/f1": 0.9}) for row in build_rows()]
    draw_pareto({"": build_report(rows, headlines=build_viability().headlines)}, tmp_path / "pareto.png")
    assert [panel.get_ylabel() for panel in figures[0].axes] == ["found F1"]


def test_times_are_drawn_to_the_scale_of_their_medians(tmp_path, figures):
    def slow_down(row):
        first, *rest = row.timings
        return replace(row, timings=(replace(first, latency=replace(first.latency, p95_ms=16 * 40.0)), *rest))

    report = build_report([slow_down(row) if row.name == "prune" else row for row in build_rows()])
    draw_bars(report, tmp_path / "bars.png")
    panel = next(each for each in figures[0].axes if each.get_title(loc="left").startswith("ms, "))
    assert max(bar.get_width() for bar in panel.patches) > panel.get_xlim()[1] / 2
    ends = {line.get_ydata()[0]: line for line in panel.lines if line.get_marker() != "None"}
    assert [ends[place].get_marker() for place in range(6)] == ["|", ">", "|", "|", "|", "|"]
    assert ends[0].get_xdata()[0] == pytest.approx(1.1 * 40.0)
    assert 40.0 < ends[1].get_xdata()[0] < panel.get_xlim()[1]
    texts = [text.get_text() for text in panel.texts]
    assert texts[:3] == ["40.0", "20.5  (÷1.95, 95 %: 640)", "20.4  (÷1.96)"]
    figures[0].draw_without_rendering()
    assert all(text.get_window_extent().x1 <= panel.get_window_extent().x1 for text in panel.texts)


def test_where_factors_of_times_come_from_is_said_beside_them(tmp_path, figures):
    report, out = build_report(), StringIO()
    draw_bars(report, tmp_path / "bars.png")
    assert figures[0].legends[0].get_title().get_text() == f"{ABOUT_POINTS}\n{ABOUT_FACTORS}"
    print_report(report, Console(file=out, width=80))
    assert ABOUT_FACTORS in out.getvalue()
    for runs, said in ((SWEEP, True), ({"": report}, False)):
        draw_pareto(runs, tmp_path / "pareto.png")
        assert (figures[-1].legends[0].get_title().get_text() == ABOUT_FACTORS) == said


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
    assert any(ABOUT_FACTORS in text for text in texts)
    assert "python compress.py ckpt='a <b>.ckpt' & more" in texts
    lengths = {len(list(row)) for row in root.iter("tr")}
    assert lengths == {7}


def test_the_table_shows_every_row_and_the_verdict():
    out = StringIO()
    print_report(build_report(fault="it lost [red]"), Console(file=out, width=160))
    lines = out.getvalue().splitlines()
    score = next(line for line in lines if "mean IoU " in line)
    assert score.split()[2:6] == ["0.912", "0.899", "(-1.30)", "0.907"]
    assert "missed: it lost [red]" in lines
    assert next(line for line in lines if "ms, 1 thread, p50" in line).split()[4:7] == ["40.0", "20.5", "(÷1.95)"]
