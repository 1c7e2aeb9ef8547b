"""The report of a compression run of a U-Net, every number counted again in another way."""

import json
import re
from dataclasses import replace
from importlib.metadata import version
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from compressed_run import MAPS, SIZE, UNET, build_samples, prune, save, start
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from cellvision.bundle import load_manifest
from cellvision.errors import ConfigError, ExportError
from cellvision.export.compressed.report import report_compression
from cellvision.export.compressed.rows import Row, list_rows
from cellvision.export.gate.found import open_bundle
from cellvision.metrics.accuracy import Accuracy
from cellvision.report.record import load_report
from cellvision.training.checkpoint import load_net

RUNS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a run with its phase "prune", the net it began with, and fields that this net finds all cells of."""
    folder = tmp_path_factory.mktemp("run")
    net = start(**UNET)
    samples = build_samples(net, splitting=MAPS)
    base = save(net, folder / "base.ckpt", splitting=MAPS)
    record = prune(net, macs=0.4)
    save(net, folder / "checkpoints" / "prune.ckpt", record, splitting=MAPS)
    scratch = save(start(1, name="unet", widths=(4, 8)), folder / "scratch.ckpt", splitting=MAPS)
    return folder, list_rows(folder, base=base, scratch=scratch), samples


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def report(run, told):
    folder, rows, samples = run
    given = {"samples": samples, "fields": samples, "threads": (1,), "runs": RUNS, "tell": told.append}
    return report_compression(rows, folder / "report", **given, command="python compress.py 'a b'")


def test_rows_are_those_of_the_run(report, run):
    assert [(row.name, row.role, row.before, row.precision) for row in report.rows] == [
        ("base", "step", None, "fp32"),
        ("prune", "step", "base", "fp32"),
        ("ptq", "static", "base", "int8"),
        ("scratch", "scratch", "prune", "fp32"),
    ]
    assert [row.steps for row in report.rows] == [(), ("prune",), (), ()]
    assert (report.base.name, report.final.name, report.fields, report.size) == ("base", "prune", 2, SIZE)


def test_parameters_and_multiplications_are_those_that_torch_counts(report, run):
    for row, source in zip(report.rows, run[1], strict=True):
        net, _ = load_net(source.checkpoint)
        assert row.parameters == sum(parameter.numel() for parameter in net.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.logits(torch.zeros(1, 1, *SIZE))
        assert row.macs == counter.get_total_flops() / 2
        assert row.checkpoint == str(source.checkpoint)


def test_sizes_are_those_of_the_files(report, run):
    for row in report.rows:
        assert row.size_bytes == (run[0] / "report" / row.bundle / "graph.onnx").stat().st_size
        assert load_manifest(run[0] / "report" / row.bundle).graphs[0].precision == row.precision
    changes = report.compare(report.final, report.base)
    assert changes.size == report.rows[1].size_bytes / report.rows[0].size_bytes < 0.7
    assert changes.macs == pytest.approx(0.4, abs=0.1)


def test_accuracy_and_cells_are_those_of_the_bundles(report, run):
    for row in report.rows:
        accuracy = Accuracy(("background", "cell"))
        predict = open_bundle(run[0] / "report" / row.bundle, largest_px=96)
        for sample in run[2]:
            accuracy.add(sample, predict(sample))
        assert row.accuracy == accuracy.compute()
        assert row.cells == accuracy.cells
    assert report.base.accuracy["pixel/miou"] > 0.999
    assert report.final.accuracy["pixel/miou"] < 0.95


def test_times_are_of_all_rows_in_turns(report):
    for row in report.rows:
        assert [(each.threads, each.batch) for each in row.timings] == [(1, 1), (1, 4)]
        for timing in row.timings:
            assert len(timing.times_ms) == timing.latency.runs == RUNS
            assert timing.latency.p50_ms == pytest.approx(np.median(timing.times_ms), rel=1e-3)
            assert timing.latency.p95_ms == pytest.approx(np.percentile(timing.times_ms, 95), rel=1e-3)
            per_second = 1e3 * timing.batch / np.median(timing.times_ms)
            assert timing.latency.images_per_s == pytest.approx(per_second, rel=1e-3)
        base = report.base.find_timing(1).times_ms
        expected = np.median(np.array(row.find_timing(1).times_ms) / base)
        assert report.compare(row, report.base).latency == {1: pytest.approx(expected)}
        assert row.peak_mib is None or row.peak_mib > 20


def test_the_loss_of_the_last_step_is_told_behind_everything_else(report, run, capsys):
    lost = 100 * (report.base.accuracy["pixel/miou"] - report.final.accuracy["pixel/miou"])
    with pytest.raises(
        ExportError, match=rf"^prune loses {lost:.2f} points of mean IoU \(1\.000 to 0\.\d+\) against"
    ) as e:
        report.raise_if_lost()
    assert "need at most 1 point lost on 2 fields" in str(e.value)
    written = sorted(path.name for path in (run[0] / "report").iterdir() if path.is_file())
    assert written == ["compression.html", "compression.json", "compression.png", "pareto.png"]


def test_a_tolerance_that_is_kept_is_no_error(report):
    from cellvision.export.compressed.verdict import find_fault

    assert find_fault(replace(report, tolerance_points=100.0)) == ""


def test_the_file_holds_everything(report, run):
    path = run[0] / "report" / "compression.json"
    assert load_report(path) == report == load_report(path.parent)
    plain = json.loads(path.read_text())
    assert plain["passed"] is False
    assert plain["final"] == "prune"
    assert plain["command"] == "python compress.py 'a b'"
    assert plain["versions"]["torch"] == version("torch")
    assert plain["rows"][1]["against_base"]["size"] == report.compare(report.final, report.base).size
    assert plain["rows"][0]["against_before"] is None


def test_the_page_needs_no_other_file(report, run):
    page = (run[0] / "report" / "compression.html").read_text(encoding="utf-8")
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    sources = [each.get("src") for each in root.iter("img")]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert not list(root.iter("script")) + list(root.iter("link"))
    head = [cell.text for cell in next(root.iter("thead")).iter("th")]
    assert head == [None, "base", "prune", "ptq", "scratch"]
    assert "python compress.py 'a b'" in [each.text for each in root.iter("pre")]


def test_pictures_show_something(run):
    for name in ("compression.png", "pareto.png"):
        pixels = np.asarray(Image.open(run[0] / "report" / name).convert("RGB"))
        assert min(pixels.shape[:2]) > 400
        assert len(np.unique(pixels[::5, ::5].reshape(-1, 3), axis=0)) > 30


def test_progress_names_the_row_and_how_far_it_has_come(report, told):
    for text in (
        "prune: making the graph: whole",
        "ptq: accuracy: 2 of 2 fields",
        "times of 4 images, 1 thread: 5 of 5 rounds",
    ):
        assert text in told


def test_rows_that_make_no_report_are_refused(run, tmp_path):
    _, rows, samples = run
    for wrong in (rows[:1], rows[1:], [*rows, rows[0]]):
        with pytest.raises(ConfigError, match="need a step 'base', another step, and no name twice"):
            report_compression(wrong, tmp_path, samples=samples)
    alone = Row(name="ptq", checkpoint=rows[3].checkpoint, role="static")
    with pytest.raises(ConfigError, match=r"static row 'ptq' of .*scratch.ckpt; need another row of that checkpoint"):
        report_compression([*rows[:2], alone], tmp_path, samples=samples)
    with pytest.raises(ConfigError, match="static rows ptq and no training field; need fields"):
        report_compression(rows, tmp_path, samples=samples)
    with pytest.raises(ConfigError, match="tolerance_points=-1"):
        report_compression(rows, tmp_path, samples=samples, tolerance_points=-1)
    for name, value in (("runs", 0), ("rounds", -1)):
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            report_compression(rows, tmp_path, samples=samples, **{name: value})
    nothing = {"label_image": np.zeros(SIZE, np.int32), "cell_classes": np.zeros(0, np.int64)}
    empty = [replace(sample, **nothing) for sample in samples]
    with pytest.raises(ExportError, match="2 held-out fields without a cell"):
        report_compression(rows, tmp_path, samples=empty)
    with pytest.raises(ConfigError, match=r"row '\.\./x'; need the name of a folder"):
        Row(name="../x", checkpoint=tmp_path)
    with pytest.raises(ConfigError, match="unknown role of a row 'teacher'"):
        Row(name="x", checkpoint=tmp_path, role="teacher")
    with pytest.raises(ConfigError, match=r"unknown report\.ptq entry 'distill'"):
        list_rows(run[0], base=rows[0].checkpoint, static=("distill",))
    with pytest.raises(ConfigError, match=r"report\.ptq names scratch; need a net from"):
        list_rows(run[0], base=rows[0].checkpoint, static=("scratch",))


def test_the_small_net_can_be_rounded_too(run):
    rows = list_rows(run[0], base=run[1][0].checkpoint, scratch=run[0] / "small.ckpt", static=("base", "scratch"))
    assert [(row.name, row.role) for row in rows[-3:]] == [
        ("ptq", "static"),
        ("scratch ptq", "static"),
        ("scratch", "scratch"),
    ]
    assert rows[-2].checkpoint == rows[-1].checkpoint


@pytest.mark.parametrize("phases", [("prune",), ("prune", "distill")])
def test_the_last_net_is_the_best_of_the_run_once_there_is_one(tmp_path, phases):
    """Its threshold is fitted and its scores are final; a row that rounds it is of the same net."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in phases:
        (folder / f"{name}.ckpt").touch()
    unfinished = list_rows(tmp_path, base=tmp_path / "base.ckpt", static=(phases[-1],))
    assert unfinished[len(phases)].checkpoint == folder / f"{phases[-1]}.ckpt"
    (folder / "best.ckpt").touch()
    rows = {row.name: row.checkpoint for row in list_rows(tmp_path, base=tmp_path / "base.ckpt", static=(phases[-1],))}
    assert rows[phases[-1]] == rows[f"{phases[-1]} ptq"] == folder / "best.ckpt"
    assert rows["base"] == tmp_path / "base.ckpt"
    assert len(phases) == 1 or rows["prune"] == folder / "prune.ckpt"


def test_a_step_of_an_earlier_run_in_the_same_folder_is_not_shown(tmp_path):
    """That was killed before its first epoch had ended, so that another one begins anew there."""
    (tmp_path / "checkpoints").mkdir()
    for name in ("prune", "quantize", "best"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").touch()
    rows = list_rows(tmp_path, base=tmp_path / "base.ckpt", phases=["prune"])
    assert [row.name for row in rows] == ["base", "prune", "ptq"]
    assert rows[1].checkpoint == tmp_path / "checkpoints" / "best.ckpt"
