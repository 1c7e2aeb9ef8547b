"""A Swin-UNet as a bundle: ONNX Runtime and the C++ program give what PyTorch gives, at every size and in tiles."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import cpp_build
from cellvision.bundle import Splitting, load_manifest
from cellvision.cli import main
from cellvision.data.image_writer import write_image
from cellvision.export.writer import export_bundle
from cellvision.runtime.predictor import Predictor

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def bundle(swin_run, swin_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin") / "bundle"
    export_bundle(
        swin_run[0],
        folder,
        samples=swin_data.collect_held_out(2),
        channels=swin_data.channels,
        image_dtypes=swin_data.image_dtypes,
        pixel_size_um=None,
        splitting=Splitting(method="distance", min_area_px=5),
        accuracy={},
        provenance={},
    )
    return folder


@pytest.fixture(scope="module")
def field(swin_data):
    """(C, 250, 211): held-out fields side by side and cut, so that no side is a multiple of anything."""
    images = [sample.image for sample in swin_data.collect_held_out(4)]
    row = np.concatenate([*images[:2], images[0]], axis=2)
    return np.concatenate([row, row[:, :, ::-1], row], axis=1)[:, :250, :211]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 40), (32, 32), (33, 47), (130, 97), (256, 256)])
def test_graph_and_net_agree_at_every_size(bundle, swin_run, size, batch):
    manifest = load_manifest(bundle)
    session = onnxruntime.InferenceSession(bundle / manifest.graphs[0].file, providers=["CPUExecutionProvider"])
    images = torch.randint(0, 4000, (batch, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        expected = swin_run[0](images)
    found = session.run(None, {"image": images.numpy().astype(manifest.input_dtype)})
    for (name, maps), each in zip(expected.items(), found, strict=True):
        np.testing.assert_allclose(each, maps.numpy(), rtol=0, atol=1e-5, err_msg=name)


def test_the_graph_is_of_standard_operators_and_knows_no_size(bundle):
    model = onnx.load(bundle / load_manifest(bundle).graphs[0].file)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert all(dim.dim_param for at, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim) if at != 1)


def test_tiles_give_the_whole_image_s_results(bundle, field):
    """As they begin at multiples of the stride and overlap by what the windows see; with less they do not."""
    manifest = load_manifest(bundle)
    assert manifest.stride == 16
    assert manifest.provenance["tiling"] == {"exact": True, "reach_px": 32, "long_cell_px": 0}
    whole, one = Predictor(bundle, threads=1).predict_with_probabilities(field)
    tiled, many = Predictor(bundle, threads=1, tile_px=48, overlap_px=32).predict_with_probabilities(field)
    assert (whole.tiles, tiled.tiles) == (1, 16)
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-5)
    _, few = Predictor(bundle, threads=1, tile_px=48, overlap_px=16).predict_with_probabilities(field)
    assert np.abs(few - one).max() > 1e-4


@pytest.mark.parametrize("options", [[], ["--tile-px", "48"]])
def test_the_program_in_cpp_finds_the_same_cells(bundle, swin_data, tmp_path, options):
    cpp_build.build()
    (tmp_path / "images").mkdir()
    for number, sample in enumerate(swin_data.collect_held_out(2)):
        write_image(tmp_path / "images" / f"field_{number}.tif", sample, swin_data.channels)
    arguments = ["--bundle", str(bundle), str(tmp_path / "images"), "--threads", "1", *options]
    assert main(["predict", *arguments, "--out", str(tmp_path / "python")]) == 0
    done = cpp_build.run("cellvision_predict", *arguments, "--out", tmp_path / "cpp")
    assert (done.returncode, done.stderr.decode()) == (0, "")
    expected, found = ((tmp_path / side / "cells.csv").read_text() for side in ("python", "cpp"))
    assert len(expected.splitlines()) > 5
    assert found == expected
