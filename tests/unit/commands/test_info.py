from dataclasses import replace

import pytest

from cellvision.bundle import Graph, load_manifest
from cellvision.commands.info import print_manifest
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
