import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cellvision.errors import ConfigError, ExportError
from cellvision.export.onnx import export_onnx
from cellvision.export.quantize.calibration import build_feeds
from cellvision.export.quantize.nodes import choose_nodes, find_heads
from cellvision.export.quantize.static import Quantizer, quantize_int8
from cellvision.models.build import build_model

WIDTH = 64
TRUNK = ("stem", "down", "deep", "mean", "squeeze", "gate", "gated", "up", "joined", "fused", "sum")


def node(op, name, *inputs, **attributes):
    return helper.make_node(op, list(inputs), [name], name=name, **attributes)


def build_graph():
    """What the nets consist of, small: norm, joins, gate, mean, transposed convolution, three heads, decoding."""
    rng = np.random.default_rng(0)
    weights = {"offset": np.float32(100), "scale": np.float32(50), "axes": np.array([2, 3]), "shift": np.float32(0.5)}
    weights |= {"k1": np.array([1]), "flat": np.array([0, WIDTH])}

    def conv(name, source, out, given, side, op="Conv", **options):
        spread = (given * side * side) ** -0.5
        shape = (given, out) if op == "ConvTranspose" else (out, given)
        weights[f"{name}_w"] = rng.normal(0, spread, (*shape, side, side)).astype(np.float32)
        weights[f"{name}_b"] = rng.normal(0, 0.1, out).astype(np.float32)
        return node(op, name, source, f"{name}_w", f"{name}_b", kernel_shape=[side, side], **options)

    weights["last_w"] = rng.normal(0, 0.1, (WIDTH, 2)).astype(np.float32)
    weights["squeeze_w"] = rng.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        node("Sub", "centred", "image", "offset"),
        node("Div", "normal", "centred", "scale"),
        conv("stem", "normal", WIDTH, 4, 3, pads=[1] * 4),
        node("Relu", "stem_relu", "stem"),
        node("MaxPool", "down", "stem_relu", kernel_shape=[2, 2], strides=[2, 2]),
        conv("deep", "down", WIDTH, WIDTH, 3, pads=[1] * 4),
        node("Relu", "deep_relu", "deep"),
        node("ReduceMean", "mean", "deep_relu", "axes", keepdims=1),
        node("Reshape", "mean_flat", "mean", "flat"),
        node("MatMul", "squeeze", "mean_flat", "squeeze_w"),
        node("Unsqueeze", "squeezed", "squeeze", "axes"),
        node("Sigmoid", "gate", "squeezed"),
        node("Mul", "gated", "deep_relu", "gate"),
        node("Add", "shifted", "gated", "shift"),  # arithmetic with a constant, as in a norm
        conv("up", "shifted", WIDTH, WIDTH, 2, op="ConvTranspose", strides=[2, 2]),
        node("Concat", "joined", "up", "stem_relu", axis=1),
        conv("fused", "joined", WIDTH, 2 * WIDTH, 3, pads=[1] * 4),
        node("Add", "sum", "fused", "stem_relu"),
        node("Relu", "sum_relu", "sum"),
        conv("head", "sum_relu", 1, WIDTH, 1),
        node("Sigmoid", "scores", "head"),
        conv("box_head", "sum_relu", 4, WIDTH, 1),
        node("Mul", "boxes", "box_head", "scale"),
        node("ReduceMax", "best", "boxes", "axes", keepdims=0),
        node("GlobalMaxPool", "top", "sum_relu"),
        node("Reshape", "top_flat", "top", "flat"),
        node("Gemm", "last", "top_flat", "last_w"),
        helper.make_node("TopK", ["last", "k1"], ["found", "where"], name="found"),
    ]
    shape = ["batch", 4, "height", "width"]
    outputs = [("scores", ["batch", 1, "height", "width"]), ("best", ["batch", 4]), ("found", ["batch", 1])]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, image):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


def get_constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(110, 40, (2, 4, 24, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "graph.onnx"
    onnx.save(build_graph(), path)
    return path


@pytest.fixture(scope="module")
def feeds(image):
    return build_feeds(list(image), dtype="float32")


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def quantized(request, graph, feeds, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "int8.onnx"
    report = quantize_int8(graph, path, feeds=feeds, form=request.param)
    return report, onnx.load(path)


def test_quantises_what_lies_between_the_first_and_the_last_layers(quantized):
    report, _ = quantized
    found = {name for name in report.quantized if not name.endswith("relu")}
    layers_and_sums = {"stem", "deep", "squeeze", "up", "fused", "sum"}
    heads = {"head", "box_head"}  # of one pixel: integer weights, float results
    assert found == ({*TRUNK, *heads} if report.form == "onnxruntime" else layers_and_sums)
    assert set(report.kept) == ({"last"} if report.form == "onnxruntime" else {*heads, "last"})


def test_results_are_close_and_of_any_size(quantized, image):
    _, model = quantized
    onnx.checker.check_model(model, full_check=True)
    for given in (image, image[:1, :, :18, :14]):
        for expected, found in zip(run(build_graph(), given), run(model, given), strict=True):
            assert found.shape == expected.shape
            assert 0 < np.abs(found - expected).max() < 0.1 * np.ptp(expected) + 0.02


def test_weights_are_integers_of_one_scale_per_channel(quantized):
    report, model = quantized
    constants, original = get_constants(model), get_constants(build_graph())
    assert report.bytes <= 0.3 * report.float_bytes
    assert max(value.size for value in constants.values() if value.dtype == np.float32) <= 4 * WIDTH  # the box head
    for name, axis in (("stem_w", 0), ("deep_w", 0), ("fused_w", 0), ("up_w", 1), ("squeeze_w", 1)):
        if name == "up_w" and report.form == "onnxruntime":  # a convolution there, see test_integer_forms.py
            assert f"{name}_quantized" not in constants
            continue
        values, scale = constants[f"{name}_quantized"], constants[f"{name}_scale"]
        assert values.dtype == np.int8
        assert scale.shape == (original[name].shape[axis],)
        assert not constants[f"{name}_zero_point"].any()
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        step = scale.reshape(shape)
        assert (np.abs(values * step - original[name]) <= 0.501 * step).all()


def test_forms_differ_as_their_runtimes_need(quantized):
    report, model = quantized
    constants = get_constants(model)
    makers = {name: one for one in model.graph.node for name in one.output}
    activations = [one for one in model.graph.node if one.op_type == "QuantizeLinear"]
    points = [constants[one.input[2]] for one in activations]
    biases = [one for one in model.graph.node if one.op_type == "Conv" and makers.get(one.input[2])]
    if report.form == "onnxruntime":
        assert {point.dtype.name for point in points} == {"uint8"}
        assert {int(constants[makers["stem_relu_DequantizeLinear_Output"].input[2]])} == {0}  # so that ReLU fuses
        assert len(biases) == 4
    else:
        assert {point.dtype.name for point in points} == {"int8"}
        assert not any(point.any() for point in points)
        assert not biases
        fed = {one.input[0] for one in activations}
        assert not fed & {"stem", "deep"}  # a scale between a layer and its ReLU would keep them from fusing


def test_only_standard_operators_and_no_notes(quantized):
    _, model = quantized
    assert {one.domain for one in model.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert not model.metadata_props


def test_onnxruntime_runs_its_form_in_integers(graph, feeds, tmp_path):
    quantize_int8(graph, tmp_path / "int8.onnx", feeds=feeds)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    ops = [one.op_type for one in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ops.count("QLinearConv") == 4  # the transposed one among them
    assert "ConvTranspose" not in ops
    assert {"QLinearGlobalAveragePool", "QLinearMul", "QLinearAdd", "QLinearConcat", "QLinearSigmoid"} <= set(ops)
    assert ops.count("MatMulIntegerToFloat") == 2  # the heads
    assert not {"Conv", "FusedConv"} & set(ops)


def test_boxes_that_lead_into_later_layers_are_no_trunk():
    shape, rng = (1, 8, "h", "w"), np.random.default_rng(0)
    values = {"w": rng.normal(size=(8, 8, 1, 1)), "v": rng.normal(size=(4, 8, 1, 1)), "flat": np.array([-1, 4])}
    values |= {"two": np.float32(2), "k": np.array([5]), "axis": np.array([0])}
    nodes = [
        node("Conv", "trunk", "image", "w"),
        node("Conv", "map", "trunk", "w"),
        node("Conv", "box_head", "map", "v"),
        node("Add", "double", "box_head", "box_head"),
        node("Reshape", "rows", "double", "flat"),
        node("Slice", "boxes", "rows", "axis", "k", "axis"),
        node("ConstantOfShape", "images", "k", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
        node("RoiAlign", "regions", "map", "boxes", "images", output_height=4, output_width=4),
        node("Conv", "mask", "regions", "w"),
        node("Conv", "mask_head", "mask", "w"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("mask_head", TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(np.float32(v) if "f" in str(np.asarray(v).dtype) else v, n)
                for n, v in values.items()
            ],
        )
    )
    assert choose_nodes(model, form="onnxruntime") == ["trunk", "map", "mask"]
    assert find_heads(model) == ["box_head", "mask_head"]


def test_a_real_nets_narrow_first_layer_stays_float(graphs, samples, tmp_path):
    feeds = build_feeds([sample.image for sample in samples], dtype="uint16", tile_px=64)
    report = quantize_int8(graphs["uint16"], tmp_path / "int8.onnx", feeds=feeds, method="percentile")
    types = {one.name: one.op_type for one in Quantizer(graphs["uint16"], feeds=feeds[:1]).model.graph.node}
    assert [types[name] for name in report.quantized if types[name] == "Conv"] == ["Conv", "Conv"]
    assert len(report.kept) == 1
    assert report.to_record()["calibration_images"] == len(feeds)
    image = samples[0].image[None]
    expected, found = (run(path.read_bytes(), image) for path in (graphs["uint16"], tmp_path / "int8.onnx"))
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < np.abs(ours - theirs).max() < 0.1


def test_a_transformer_is_quantised_by_calibration(tmp_path):
    """All but the first and the last convolution, and the two products of feature maps in each of its six blocks."""
    torch.manual_seed(0)
    sizes = {"depths": (2, 2), "widths": (32, 64), "heads": (1, 2)}
    net = build_model(name="swin_unet", kind="semantic", in_channels=1, classes=("background", "cell"), **sizes).eval()
    path = export_onnx(net, tmp_path / "graph.onnx")
    images = [np.random.default_rng(seed).normal(0, 1, (1, 48, 56)).astype(np.float32) for seed in range(2)]
    report = quantize_int8(path, tmp_path / "int8.onnx", feeds=build_feeds(images, dtype="float32"))
    assert len(report.kept) == 2 + 2 * 6
    assert len(report.quantized) > 24 + 4  # four linear layers in each block, and sums and joins besides
    assert report.bytes < 0.6 * report.float_bytes
    for given in (images[0][None], images[1][None, :, :33, :41]):
        (expected,), (found,) = (run(file.read_bytes(), given) for file in (path, tmp_path / "int8.onnx"))
        assert found.shape == expected.shape
        assert 0 < np.abs(found - expected).max() < 0.1


def test_keeps_what_is_named(graph, feeds, tmp_path):
    report = quantize_int8(graph, tmp_path / "int8.onnx", feeds=feeds, keep_float=["de*", "sum"])
    assert {"deep", "sum"} & set(report.quantized) == set()
    assert set(report.kept) == {"deep", "head", "box_head", "last"}  # heads behind a float sum have no integers to take
    report = quantize_int8(graph, tmp_path / "int8.onnx", feeds=feeds, keep_float=["*head"])
    assert set(report.kept) == {"head", "box_head", "last"}
    with pytest.raises(ConfigError, match=r"keep_float has 'x\*', which no quantised node is called"):
        quantize_int8(graph, tmp_path / "no.onnx", feeds=feeds, keep_float=["x*"])
    with pytest.raises(ExportError, match="8 layers with weights, and none of them between others"):
        quantize_int8(graph, tmp_path / "no.onnx", feeds=feeds, keep_float=["*"])
    assert not list(tmp_path.glob("no.onnx*"))


def test_refuses_what_is_no_float_graph(graph, feeds, tmp_path):
    quantize_int8(graph, tmp_path / "int8.onnx", feeds=feeds)
    with pytest.raises(ExportError, match=r"int8.onnx is quantised already"):
        quantize_int8(tmp_path / "int8.onnx", tmp_path / "no.onnx", feeds=feeds)
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"bad.onnx cannot be prepared"):
        quantize_int8(tmp_path / "bad.onnx", tmp_path / "no.onnx", feeds=feeds)
    with pytest.raises(ConfigError, match="unknown quantised form 'openvino'"):
        quantize_int8(graph, tmp_path / "no.onnx", feeds=feeds, form="openvino")
    foreign = build_graph()
    foreign.graph.node[3].op_type, foreign.graph.node[3].domain = "Gelu", "com.microsoft"
    foreign.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match=r"the graph has operators of com.microsoft"):
        quantize_int8(tmp_path / "foreign.onnx", tmp_path / "no.onnx", feeds=feeds)
