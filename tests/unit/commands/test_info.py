from dataclasses import replace

import pytest

from cellvision.bundle import Graph, load_manifest
from cellvision.commands.info import print_manifest, print_summary
from dot_net import write_dot_bundle


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")

    def show(manifest):
        print_manifest(manifest)
        return capsys.readouterr().out

    return show


def test_graphs_are_listed_with_their_precision(tmp_path, printed):
    manifest = load_manifest(write_dot_bundle(tmp_path / "b", parted=True))
    trunk, masks = manifest.graphs
    engine = Graph(role="trunk", file="t.plan", sha256=trunk.sha256, engine="tensorrt", precision="int8")
    text = printed(replace(manifest, graphs=(engine, masks)))
    assert "trunk: t.plan (tensorrt, int8)" in text
    assert "masks: masks.onnx (onnx, fp32)" in text
    joined = "".join(text.split())
    assert "max_cells=64,mask_side=28" in joined
    assert trunk.sha256 in joined
    assert masks.sha256 in joined


def test_nets_of_maps_detect_nothing(stain_bundle, printed):
    text = printed(load_manifest(stain_bundle))
    assert "whole: model.onnx (onnx, fp32)" in text
    assert "detecting" not in text


def test_nothing_in_a_bundle_makes_a_line_or_colour(stain_bundle, capsys, printed):
    classes = ("background", "live", "dead", "\x1b[31mred\nedge     a lie\x9b")
    gate = {"form": "fp32", "forms": {"fp32": {"passed": True}}, "sentence": "a\x1b]0;b\nc"}
    manifest = replace(load_manifest(stain_bundle), classes=classes, gate=gate, versions={"torch": "\r\x1b[2K"})
    print_summary(manifest, stain_bundle)
    text = capsys.readouterr().out + printed(manifest)
    assert not [character for character in text if not character.isprintable() and character != "\n"]
    assert not [line for line in text.splitlines() if line.startswith("edge")]
    assert "\\x1b[31mred\\nedge" in text


ACCURACY = {f"val/mask/ap_{n}": 0.5 for n in range(100)} | {"val/mask/ap": 0.65264, "val/cell/f1": 0.88}
FORM = {"passed": True, "ratio": 0.47721, "size_ratio": 0.3, "memory_ratio": None, "lost_points": {"mask/ap": 0.024}}
RECORDS = {
    "accuracy": ACCURACY,
    "parity": {"max_difference": 1.5e-05, "tolerance": 0.001, "cells_net": 201, "cells_graph": 200, "cases": [{}] * 50},
    "latency": {"size": [1, 256, 256], "threads": 2, "onnxruntime_ms": {"median": 45.2}, "pytorch_ms": {"median": 129}},
    "gate": {"form": "int8", "passed": True, "sentence": "a sentence", "forms": {"int8": FORM, "fp32": {}}},
    "versions": {"cellvision": "0.1.0", "timm": "1.0"},
}


def test_a_summary_fits_one_screen(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = write_dot_bundle(tmp_path / "b", parted=True)
    print_summary(replace(load_manifest(folder), **RECORDS), folder)
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    rows = [line.strip() for line in text.splitlines()]
    for row in (
        "classes   background, live, dead",
        "channels  dots (nuclear), radius, dead (dead)",
        "accuracy  val/mask/ap=0.6526, val/cell/f1=0.88",
        "parity    max_difference=1.5e-05, tolerance=0.001, cells_net=201, cells_graph=200",
        "latency   size=[1, 256, 256], threads=2, onnxruntime_ms=45.2, pytorch_ms=129",
        "gate      int8 passed; of fp32: time=0.4772, size=0.3; points lost: mask/ap=0.024",
        "a sentence",
        "versions  cellvision=0.1.0",
    ):
        assert row in rows
    size = (folder / "trunk.onnx").stat().st_size / 2**20
    assert f"trunk: trunk.onnx (onnx, fp32), {size:.1f} MiB" in text
    assert "at most 64 in a tile" in text


def test_a_tolerance_is_not_told_of_graphs_that_round(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = write_dot_bundle(tmp_path / "b")
    manifest = replace(load_manifest(folder), **RECORDS)
    graphs = tuple(replace(graph, precision="int8") for graph in manifest.graphs)
    print_summary(replace(manifest, graphs=graphs), folder)
    rows = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "parity    max_difference=1.5e-05, cells_net=201, cells_graph=200, in int8" in rows


def test_records_that_are_not_there_take_no_rows(stain_bundle, capsys):
    print_summary(load_manifest(stain_bundle), stain_bundle)
    text = capsys.readouterr().out
    assert "method distance" in text
    for name in ("accuracy", "parity", "latency", "gate", "in a tile"):
        assert name not in text
