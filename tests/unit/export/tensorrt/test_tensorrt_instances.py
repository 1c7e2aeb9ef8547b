"""Both parts of an instance net become engines; built with TensorRT-RTX, which needs no GPU for it, and not run."""

import numpy as np
import onnx
import pytest
import torch

from cellvision.bundle import Detecting
from cellvision.export.half import to_half
from cellvision.export.onnx import export_part, split_net
from cellvision.export.quantize.static import quantize_int8
from cellvision.export.tensorrt.builder import build_engine
from cellvision.export.tensorrt.graph import LARGEST_K
from cellvision.export.tensorrt.options import TensorrtOptions, plan_mask_shapes
from cellvision.models.build import build_model

pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this machine")
pytestmark = pytest.mark.slow

SIZES = {"batch": (1, 1, 2), "height": (64, 128, 256), "width": (64, 128, 256)}
PLACES = 50


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    settings = {
        "backbone": "vovnet19_slim_dw", "levels": [3, 4], "top_levels": 0, "roi_levels": [3, 4], "fpn_channels": 16,
        "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1, "assigning": {"sizes_of_interest": [32]},
        "decoding": {"score_threshold": 0.0, "pre_nms": PLACES},
    }  # fmt: skip
    return build_model(name="centermask2", in_channels=2, classes=("background", "live", "dead"), **settings).eval()


@pytest.fixture(scope="module")
def parts(net, tmp_path_factory):
    """Path of each part's float graph; exports take seconds, so tests share them."""
    return write_parts(net, tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def half_parts(net, tmp_path_factory):
    return write_parts(to_half(net), tmp_path_factory.mktemp("half"))


def write_parts(net, folder):
    split = split_net(net, detecting=Detecting(max_cells=20), parted=True)
    return {part.role: export_part(part, folder / f"{part.role}.onnx") for part in split}


def choose(net, role, precision):
    calibration = "minmax" if precision == "int8" else None
    options = TensorrtOptions(backend="tensorrt_rtx", precision=precision, calibration=calibration, **SIZES)
    strides = list(net.detector.roi_heads.pool.strides.values())
    shapes = plan_mask_shapes(options, strides=strides, channels=16, padded_to=net.spec.stride)
    return options, shapes if role == "masks" else None


def make_feed(net, role):
    rng = np.random.default_rng(0)
    if role == "trunk":
        return {"image": rng.uniform(0, 900, (1, 2, 64, 96)).astype(np.float32)}
    strides = net.detector.roi_heads.pool.strides.values()
    maps = {
        f"map_{level}": rng.normal(size=(1, 16, 64 // stride, 96 // stride)).astype(np.float32)
        for level, stride in enumerate(strides)
    }
    corners = rng.uniform(0, 30, (8, 2))
    return maps | {
        "boxes": np.concatenate([corners, corners + 20], 1).astype(np.float32),
        "images": np.zeros(8, np.int64),
        "classes": np.ones(8, np.int64),
        "image_area": np.array([64.0 * 96.0], np.float32),
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("role", ["trunk", "masks"])
def test_both_parts_build(net, parts, half_parts, role, precision, tmp_path):
    path = (half_parts if precision == "fp16" else parts)[role]
    if precision == "int8":
        path = tmp_path / "int8.onnx"
        quantize_int8(parts[role], path, feeds=[make_feed(net, role)], form="tensorrt")
    options, shapes = choose(net, role, precision)
    made = build_engine(path, tmp_path / f"{role}.engine", options, shapes=shapes)
    assert made.precision == precision
    assert made.layers[precision] >= 0.6 * sum(made.layers.values())
    assert [tensor.name for tensor in made.outputs] == [value.name for value in onnx.load(path).graph.output]
    if role == "trunk":
        assert made.outputs[0].shape == ("batch", PLACES * 2, 4)
    else:
        assert made.profile["map_0"] == ((1, 16, 8, 8), (1, 16, 16, 16), (2, 16, 32, 32))
        assert made.outputs[0].shape[1:] == (28, 28)


def test_the_trunk_has_a_fixed_number_of_candidates_and_no_suppression(parts):
    for path in parts.values():
        model = onnx.load(path)
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"NonMaxSuppression", "RoiAlign", "NonZero", "Loop", "If"}
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(parts["trunk"]).graph.initializer}
    best = [node for node in onnx.load(parts["trunk"]).graph.node if node.op_type == "TopK"]
    assert len(best) == 2
    assert all(known[node.input[1]].item() == PLACES <= LARGEST_K for node in best)
