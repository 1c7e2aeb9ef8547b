"""Engines of every net are built with TensorRT-RTX, which parses and compiles without a GPU; none is run here."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cellvision.bundle import compute_sha256
from cellvision.errors import BundleError, ConfigError, ExportError
from cellvision.export.half import to_half
from cellvision.export.onnx import export_onnx
from cellvision.export.quantize.static import quantize_int8
from cellvision.export.tensorrt import builder as tensorrt
from cellvision.export.tensorrt.builder import build_engine
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.models.build import build_model
from cellvision.runtime.engines.library import Gpu
from cellvision.runtime.engines.sidecar import check_engine_sidecar, find_sidecar, load_sidecar

trt = pytest.importorskip("tensorrt_rtx", reason="no wheel of tensorrt-rtx for this machine")

VIABILITY = {
    "name": "unet", "kind": "viability", "in_channels": 3, "classes": ("background", "live", "dead"), "widths": (4, 8),
}  # fmt: skip
SEMANTIC = {"kind": "semantic", "in_channels": 1, "classes": ("background", "cell")}
NETS = {
    **{attention: VIABILITY | {"attention": attention} for attention in ("gate", "se", "cbam", "self")},
    "semantic": SEMANTIC | {"name": "unet", "widths": (4, 8), "attention": "none", "norm": "group"},
    "resnet18": VIABILITY | {"widths": (4, 8, 8), "attention": "none", "encoder": "resnet18"},
    "swin_unet": SEMANTIC | {"name": "swin_unet", "depths": (2, 1), "widths": (16, 32), "heads": (1, 2)},
}
SIZES = {"batch": (1, 2, 4), "height": (64, 128, 256), "width": (64, 96, 256)}


def choose(precision="fp32", **options):
    calibration = "minmax" if precision == "int8" else None
    given = {"backend": "tensorrt_rtx", "precision": precision, "calibration": calibration, **SIZES}
    return TensorrtOptions(**given | options)


@pytest.fixture(scope="module", params=NETS)
def net(request):
    torch.manual_seed(0)
    return build_model(**NETS[request.param]).eval()


@pytest.fixture(scope="module")
def graph(net, tmp_path_factory):
    """A net's float graph; an export takes seconds, so tests share it."""
    return export_onnx(net, tmp_path_factory.mktemp("graphs") / "graph.onnx")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One convolution: what is not about nets needs no net."""
    return write_graph(
        tmp_path_factory.mktemp("small") / "small.onnx",
        [helper.make_node("Conv", ["image", "weight"], ["maps"], name="only", pads=[1, 1, 1, 1])],
        weight=np.ones((3, 2, 3, 3), np.float32),
    )


def write_graph(path, nodes, *, kind=TensorProto.FLOAT, shape=("batch", 2, "height", "width"), **weights):
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    made = helper.make_graph(
        nodes, "g", [value("image", kind, shape)], [value("maps", TensorProto.FLOAT, None)], tensors
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def quantize(graph, channels):
    rng = np.random.default_rng(0)
    feeds = [{"image": rng.uniform(0, 900, (1, channels, 40, 56)).astype(np.float32)} for _ in range(2)]
    made = graph.with_name("int8.onnx")
    quantize_int8(graph, made, feeds=feeds, form="tensorrt")
    return made


def build_and_check(path, net, precision, folder):
    engine = folder / "graph.engine"
    made = build_engine(path, engine, choose(precision))
    channels = net.spec.in_channels
    assert engine.stat().st_size > 10_000
    assert made == load_sidecar(engine)
    assert made.profile == {"image": ((1, channels, 64, 64), (2, channels, 128, 96), (4, channels, 256, 256))}
    assert (made.precision, made.library, made.library_version) == (precision, "tensorrt_rtx", trt.__version__)
    assert sum(made.layers.values()) - made.layers[precision] <= 1  # the last layer stays in float
    assert (made.onnx_sha256, made.engine_sha256) == (compute_sha256(path), compute_sha256(engine))
    assert [(tensor.name, tensor.element) for tensor in made.inputs] == [("image", "float")]
    assert [(tensor.name, tensor.element) for tensor in made.outputs] == [(name, "float") for name in net.spec.outputs]


def test_every_net_builds_in_fp32(net, graph, tmp_path):
    build_and_check(graph, net, "fp32", tmp_path)


def test_every_net_builds_in_int8(net, graph, tmp_path):
    build_and_check(quantize(graph, net.spec.in_channels), net, "int8", tmp_path)


def test_every_net_builds_in_fp16(net, tmp_path):
    build_and_check(export_onnx(to_half(net), tmp_path / "half.onnx"), net, "fp16", tmp_path)


def test_sidecar_goes_round_and_another_place_is_refused(small, tmp_path):
    engine = tmp_path / "small.engine"
    made = build_engine(small, engine, choose())
    here = {"library_version": trt.__version__, "gpu": None}
    assert check_engine_sidecar(engine, onnx=small, **here) == made
    # Finished on the GPU that runs it: it is for any that the library knows.
    assert check_engine_sidecar(engine, **here | {"gpu": Gpu(name="RTX", compute_capability="8.9")}) == made
    with pytest.raises(BundleError, match=r"its tensorrt_rtx version is 1\.2; need .*; try: build the engine again"):
        check_engine_sidecar(engine, **here | {"library_version": "1.2"})
    with pytest.raises(BundleError, match=r"its graph is no file; need [0-9a-f]{60}, with which it was built"):
        check_engine_sidecar(engine, onnx=tmp_path / "other.onnx", **here)
    with engine.open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match="its engine file is"):
        check_engine_sidecar(engine, **here)


def test_an_engine_of_another_gpu_is_refused(small, tmp_path):
    engine = tmp_path / "small.engine"
    build_engine(small, engine, choose())
    record = json.loads(find_sidecar(engine).read_text())
    record |= {"library": "tensorrt", "gpu": {"name": "A100", "compute_capability": "8.0"}}
    find_sidecar(engine).write_text(json.dumps(record))
    same = Gpu(name="A100", compute_capability="8.0")
    assert check_engine_sidecar(engine, library_version=trt.__version__, gpu=same).gpu == same
    for gpu, said in [(None, "none"), (Gpu(name="H100", compute_capability="9.0"), r"H100 \(compute capability 9\.0")]:
        with pytest.raises(BundleError, match=rf"its GPU is {said}.*; need A100 \(compute capability 8\.0\)"):
            check_engine_sidecar(engine, library_version=trt.__version__, gpu=gpu)


def test_progress_is_told_and_what_a_listener_raises_ends_the_build(small, tmp_path):
    said = []
    build_engine(small, tmp_path / "small.engine", choose(workspace_mib=64, tf32=True), tell=said.append)
    assert any("Building engine" in line for line in said)

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(small, tmp_path / "other.engine", choose(), tell=stop)
    assert not (tmp_path / "other.engine").exists()


@pytest.mark.parametrize(
    ("nodes", "weights", "said"),
    [
        (
            [helper.make_node("NonMaxSuppression", ["image", "image"], ["maps"], name="nms_1")],
            {},
            r"node 'nms_1' \(NonMaxSuppression\); need operators that .*; try: the parted form of the net, trunk and",
        ),
        ([helper.make_node("NonZero", ["image"], ["maps"])], {}, r"node that makes 'maps' \(NonZero\)"),
        (
            [helper.make_node("TopK", ["image", "k"], ["maps", "at"], name="best")],
            {"k": [4000]},
            r"node 'best' \(TopK\); need K of at most 3840, not 4000",
        ),
        (
            [helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["maps"], name="q")],
            {"scale": np.float32(0.1), "zero": np.uint8(128)},
            r"node 'q' \(QuantizeLinear\); need int8, not uint8; try: the symmetric form, quantize with form=tensorrt",
        ),
        (
            [helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["maps"], name="q")],
            {"scale": np.float32(0.1), "zero": np.int8(3)},
            r"need the zero point 0",
        ),
        (
            [helper.make_node("DequantizeLinear", ["bias", "scale"], ["maps"], name="dq")],
            {"scale": np.float32(0.1), "bias": np.array([5], np.int32)},
            r"node 'dq' \(DequantizeLinear\); need biases in float, not in int32",
        ),
        (
            [helper.make_node("Frobnicate", ["image"], ["maps"], name="odd")],
            {},
            r"by the parser of tensorrt_rtx .*: node 0 'odd' \(Frobnicate\): .*Plugin not found.*; need operators",
        ),
        (
            [helper.make_node("TopK", ["image", "k"], ["maps", "at"], name="best", axis=1)],
            {"k": [5]},
            r"was not built by tensorrt_rtx: layer 'best': .*; need layers that it has kernels for",
        ),
    ],
)
def test_what_no_engine_can_have_is_named(nodes, weights, said, tmp_path):
    path = write_graph(tmp_path / "graph.onnx", nodes, **weights)
    with pytest.raises(ExportError, match=said):
        build_engine(path, tmp_path / "graph.engine", choose())
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]


def test_input_of_a_kind_that_tensorrt_lacks(tmp_path):
    nodes = [helper.make_node("Cast", ["image"], ["maps"], to=TensorProto.FLOAT)]
    path = write_graph(tmp_path / "graph.onnx", nodes, kind=TensorProto.UINT16)
    with pytest.raises(ExportError, match=r"has 'image' of uint16; need one of .*; try: input_dtype=float32"):
        build_engine(path, tmp_path / "graph.engine", choose())


def test_raw_counts_of_8_bits_go_in(tmp_path):
    nodes = [helper.make_node("Cast", ["image"], ["maps"], to=TensorProto.FLOAT)]
    path = write_graph(tmp_path / "graph.onnx", nodes, kind=TensorProto.UINT8)
    assert build_engine(path, tmp_path / "graph.engine", choose()).inputs[0].element == "uint8"


def test_a_graph_of_another_precision_is_refused(small, tmp_path):
    said = r"computes in fp32 \(layers with weights: 1 in fp32\), trt\.precision=int8; need .*; try: \+trt=fp32"
    with pytest.raises(ExportError, match=said):
        build_engine(small, tmp_path / "small.engine", choose("int8"))


def test_a_file_that_is_not_onnx(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    for name in ("graph.onnx", "none.onnx"):
        with pytest.raises(ExportError, match=r"cannot be read \(.+\); need an ONNX file"):
            build_engine(tmp_path / name, tmp_path / "graph.engine", choose())


@pytest.mark.parametrize(
    "shapes", [((1, 2, 8, 8), (1, 3, 8, 8), (1, 2, 9, 9)), ((1, 2, 8), (1, 2, 8), (1, 2, 8)), ((), (), ())]
)
def test_shapes_that_are_not_the_graphs(small, shapes, tmp_path):
    with pytest.raises(ConfigError, match=r"input 'image' is \['batch', 2, 'height', 'width'\], its profile"):
        build_engine(small, tmp_path / "small.engine", choose(), shapes={"image": shapes})


def test_a_profile_that_falls_is_refused(small, tmp_path):
    shapes = {"image": ((1, 2, 64, 64), (1, 2, 32, 32), (1, 2, 64, 64))}
    with pytest.raises(ConfigError, match=r"a profile that the library refuses \(.*image"):
        build_engine(small, tmp_path / "small.engine", choose(), shapes=shapes)


class Cache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+"


class Config:
    """As much of a builder's settings as a timing cache needs; those of TensorRT-RTX keep no times."""

    def __init__(self, *, fits=True):
        self.fits = fits

    def create_timing_cache(self, content):
        self.cache = Cache(content)
        return self.cache

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        return self.fits


def test_a_timing_cache_is_taken_up_again_unless_it_is_of_another_gpu(tmp_path):
    options = TensorrtOptions(timing_cache=tmp_path / "times.cache")
    assert tensorrt._take_cache(Config(), options).content == b""
    (tmp_path / "times.cache").write_bytes(b"times")
    assert tensorrt._take_cache(Config(), options).content == b"times"
    assert tensorrt._take_cache(Config(), TensorrtOptions()) is None
    with pytest.raises(ConfigError, match=r"trt\.timing_cache=.* is of another GPU or version; need .* try: another"):
        tensorrt._take_cache(Config(fits=False), options)


def test_a_library_that_does_not_start_says_so(small, tmp_path, monkeypatch):
    def refuse(logger):
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(trt, "Builder", refuse)
    with pytest.raises(ConfigError, match=r"tensorrt_rtx .* does not start \(.*\); need a GPU and driver"):
        build_engine(small, tmp_path / "small.engine", choose())
