"""Both parts of an instance net become engines; built with TensorRT-RTX, which needs no GPU for it, and not run."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.spatial import cKDTree

from cellvision.bundle import Detecting, compute_sha256, load_manifest
from cellvision.export.half import to_half
from cellvision.export.onnx import export_part, split_net
from cellvision.export.quantize.static import quantize_int8
from cellvision.export.tensorrt.builder import build_engine
from cellvision.export.tensorrt.engines import write_engines
from cellvision.export.tensorrt.options import TensorrtOptions, plan_mask_shapes
from cellvision.models.build import build_model
from cellvision.models.centermask2.fcos.decode import rank
from cellvision.models.centermask2.graphs import make_room
from cellvision.ops.topk import LARGEST_K
from cellvision.runtime.engines.sidecar import check_engine_sidecar
from dot_net import write_dot_bundle

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this machine")
pytestmark = pytest.mark.slow

SIZES = {"batch": (1, 1, 2), "height": (64, 128, 256), "width": (64, 128, 256)}
PLACES = 50


def build(backbone="vovnet19_slim_dw", **decoding):
    torch.manual_seed(0)
    settings = {
        "backbone": backbone, "levels": [3, 4], "top_levels": 0, "roi_levels": [3, 4], "fpn_channels": 16,
        "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1, "assigning": {"sizes_of_interest": [32]},
        "decoding": {"score_threshold": 0.0, **decoding},
    }  # fmt: skip
    return build_model(name="centermask2", in_channels=2, classes=("background", "live", "dead"), **settings).eval()


@pytest.fixture(scope="module")
def net():
    return build(pre_nms=PLACES)


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


def write_trunk(net, folder, *, max_cells=20):
    trunk, _ = split_net(net, detecting=Detecting(max_cells=max_cells), parted=True)
    return export_part(trunk, folder / f"{trunk.role}.onnx")


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


@pytest.fixture(scope="module", params=["vovnet19_slim", "resnet18", "mobilenetv2", "resnet10t"])
def family(request):
    """A net of each family of backbones: VoVNet with eSE, ResNet, MobileNetV2, timm. Its masks graph is that of all."""
    return build(request.param, pre_nms=PLACES)


@pytest.fixture(scope="module")
def trunk(family, tmp_path_factory):
    return write_trunk(family, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_trunk_of_every_family_of_backbones_builds(family, trunk, precision, tmp_path):
    """In fp16 another export is of other numbers, not of other layers: that of one backbone is built above."""
    path = trunk
    if precision == "int8":
        path = tmp_path / "int8.onnx"
        quantize_int8(trunk, path, feeds=[make_feed(family, "trunk")], form="tensorrt")
    made = build_engine(path, tmp_path / "trunk.engine", choose(family, "trunk", precision)[0])
    assert made.precision == precision
    assert made.layers[precision] >= 0.6 * sum(made.layers.values())
    assert made.outputs[0].shape == ("batch", PLACES * 2, 4)


def test_a_bundle_becomes_engines_and_tells_which_is_being_built(net, parts, tmp_path):
    graphs = [onnx.load(parts[role]) for role in ("trunk", "masks")]
    facts = {"input_dtype": "float32", "detecting": Detecting(max_cells=20)}
    source, folder, said = write_dot_bundle(tmp_path / "graphs", *graphs, parted=True, **facts), tmp_path / "made", []
    folder.mkdir()
    manifest = write_engines(net, source, folder, choose(net, "trunk", "fp32")[0], tell=said.append)
    assert manifest == load_manifest(folder)
    for graph, role in zip(manifest.graphs, ("trunk", "masks"), strict=True):
        assert (graph.role, graph.file, graph.engine) == (role, f"{role}.engine", "tensorrt_rtx")
        sidecar = check_engine_sidecar(folder / graph.file, library_version=tensorrt_rtx.__version__, gpu=None)
        assert sidecar.onnx_sha256 == compute_sha256(source / f"{role}.onnx")
    assert {line.partition(": ")[0] for line in said} == {"building trunk.engine", "building masks.engine"}


def test_the_trunk_has_a_fixed_number_of_candidates_and_no_suppression(parts):
    for path in parts.values():
        model = onnx.load(path)
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"NonMaxSuppression", "RoiAlign", "NonZero", "Loop", "If"}
    known = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(parts["trunk"]).graph.initializer}
    best = [node for node in onnx.load(parts["trunk"]).graph.node if node.op_type == "TopK"]
    assert len(best) == 2
    assert all(known[node.input[1]].item() == PLACES <= LARGEST_K for node in best)


@pytest.fixture(scope="module")
def crowded():
    """A net of 1,000 cells, to be exported for 3,000: the best 6,000 of a level, of 8,192 in an image of 512 px."""
    return build(pre_nms=2000, post_nms=1000)


@pytest.fixture(scope="module")
def crowded_trunk(crowded, tmp_path_factory):
    return write_trunk(crowded, tmp_path_factory.mktemp("crowded"), max_cells=3000)


def test_more_candidates_than_an_engine_finds_at_once_are_those_of_the_net(crowded, crowded_trunk):
    """The net looks for all of a level at once. Those with equal scores may come in another order."""
    options = make_room(crowded.settings.decoding, 3000)
    assert options.pre_nms == 6000 > LARGEST_K
    image = np.random.default_rng(0).uniform(0, 900, (1, 2, 512, 512)).astype(np.float32)
    names = ["boxes", "scores", "classes"]
    found = [values[0] for values in onnxruntime.InferenceSession(crowded_trunk).run(names, {"image": image})]
    with torch.inference_mode():
        outputs = crowded.detector.predict(crowded.encode_images(torch.from_numpy(image)))
        strides = list(crowded.detector.proposal_generator.strides.values())
        expected = rank(outputs, strides=strides, options=options)
    boxes, scores, classes = (vars(expected)[name][0].numpy() for name in names)
    there = found[1] >= 0
    assert there.sum() == len(scores) == 6000 + 32 * 32 * 2
    np.testing.assert_allclose(found[1][there], scores, atol=1e-5)
    rows = np.column_stack([found[0], 1e4 * (found[2] - 1)])[there]
    away, nearest = cKDTree(rows).query(np.column_stack([boxes, 1e4 * classes]))
    assert np.mean(away < 0.01) > 0.999
    assert len(np.unique(nearest)) > 0.999 * len(rows)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_trunk_for_3000_cells_builds(crowded, crowded_trunk, precision, tmp_path):
    path = crowded_trunk
    if precision == "fp16":
        path = write_trunk(to_half(crowded), tmp_path, max_cells=3000)
    elif precision == "int8":
        path = tmp_path / "int8.onnx"
        quantize_int8(crowded_trunk, path, feeds=[make_feed(crowded, "trunk")], form="tensorrt")
    options, _ = choose(crowded, "trunk", precision)
    made = build_engine(path, tmp_path / "trunk.engine", options)
    assert made.precision == precision
    assert made.outputs[0].shape == ("batch", 2 * 6000, 4)
