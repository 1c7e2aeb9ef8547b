import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cellvision.export.quantize.calibration import build_feeds
from cellvision.export.quantize.faster import count_pixels, join_pixels, multiply_heads, repeat_pixels
from cellvision.export.quantize.static import Quantizer
from cellvision.export.quantize.widths import find_divisors

NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
SIZES = [(1, 24, 32), (2, 17, 19), (1, 1, 1), (1, 3, 2), (0, 24, 32)]  # none: masks where no cell was found


def build_graph():
    """Narrow layers that can be joined, and some that cannot; enlargements of both kinds; two heads."""
    rng = np.random.default_rng(0)
    weights = {
        "twofold": np.float32([1, 1, 2, 2]),
        "uneven": np.float32([1, 1, 1, 3]),
        "half": np.float32([1, 1, 1.5, 1]),
    }
    nodes = []

    def conv(name, source, shape, *, biased=True, relu=True, **options):
        weights[f"{name}_w"] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
        inputs = [source, f"{name}_w"]
        if biased:
            weights[f"{name}_b"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
            inputs.append(f"{name}_b")
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, kernel_shape=shape[2:], **options))
        if relu:
            nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"], name=f"{name}_relu"))
        return f"{name}_relu" if relu else name

    def resize(name, source, scales, **options):
        nodes.append(helper.make_node("Resize", [source, "", scales], [name], name=name, **options))
        return name

    last = conv("stem", "image", (16, 4, 3, 3), pads=[1] * 4)
    last = conv("square", last, (16, 16, 3, 3), pads=[1] * 4, biased=False)
    last = conv("point", last, (8, 16, 1, 1), relu=False)  # may be negative: a zero point
    last = conv("off_centre", last, (12, 8, 5, 3), pads=[2, 0, 2, 2], strides=[2, 1])
    last = conv("groups", last, (8, 3, 3, 3), pads=[1] * 4, group=4)
    last = conv("dilated", last, (8, 8, 3, 3), pads=[2] * 4, dilations=[2, 2])
    last = conv("even", last, (8, 8, 2, 2), pads=[1, 1, 0, 0])
    last = conv("wider", last, (8, 8, 2, 2), pads=[1, 1, 0, 1])
    last = conv("single", last, (1, 8, 1, 1), relu=False)
    conv("one_head", last, (2, 1, 1, 1), relu=False)
    last = resize("double", last, "twofold", **NEAREST)
    last = conv("doubled", last, (5, 1, 3, 3), pads=[1] * 4)
    last = resize("triple", last, "uneven", **NEAREST)
    last = resize("by_half", last, "half", **NEAREST)
    last = resize("smooth", last, "twofold", mode="linear")
    last = conv("fine", last, (16, 5, 3, 3), pads=[1] * 4)
    last = resize("again", last, "twofold", **NEAREST)
    conv("head", last, (3, 16, 1, 1), relu=False)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, "height", "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("head", "one_head")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "graph.onnx"
    onnx.save(build_graph(), path)
    feeds = build_feeds([draw(24, 32)[0], draw(17, 19)[0]], dtype="float32")
    quantizer = Quantizer(path, feeds=feeds)
    return quantizer.build(quantizer.nodes)


def draw(height, width, *, batch=1):
    """(B, 4, H, W) float32."""
    return np.random.default_rng(height).normal(0, 1, (batch, 4, height, width)).astype(np.float32)


def open_session(model, *, optimised=True, path=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if path is not None:
        options.optimized_model_filepath = str(path)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def copy(model):
    return onnx.ModelProto.FromString(model.SerializeToString())


@pytest.mark.parametrize("optimised", [True, False], ids=["integers", "as written"])
def test_gives_the_same_values_at_any_size(quantized, optimised):
    changed = copy(quantized)
    assert join_pixels(changed) == ["stem", "square", "point", "off_centre", "even", "single", "doubled", "fine"]
    assert repeat_pixels(changed) == ["double", "triple", "again"]
    onnx.checker.check_model(changed, full_check=True)
    assert [one.op_type for one in changed.graph.node].count("Resize") == 2
    before, after = (open_session(model, optimised=optimised) for model in (quantized, changed))
    for batch, height, width in SIZES:
        image = draw(height, width, batch=batch)
        for expected, found in zip(before.run(None, {"image": image}), after.run(None, {"image": image}), strict=True):
            assert found.shape == expected.shape
            assert batch == 0 or width < 4 or np.ptp(expected) > 0.1
            np.testing.assert_array_equal(found, expected)


def test_a_last_layer_of_integers_rounds_its_weights_only(quantized):
    changed, expected = copy(quantized), copy(quantized)
    assert multiply_heads(changed, ["head", "one_head"]) == ["one_head", "head"]
    for tensor in expected.graph.initializer:
        if tensor.name in ("head_w", "one_head_w"):
            values = numpy_helper.to_array(tensor)
            step = np.abs(values).max(axis=1, keepdims=True) / 127
            tensor.CopyFrom(numpy_helper.from_array((np.rint(values / step) * step).astype(np.float32), tensor.name))
    sessions = [open_session(model) for model in (expected, changed)]
    for batch, height, width in SIZES:
        image = draw(height, width, batch=batch)
        for wanted, found in zip(*(session.run(None, {"image": image}) for session in sessions), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_onnxruntime_moves_no_channels_for_it(quantized, tmp_path):
    changed = copy(quantized)
    multiply_heads(changed, ["head", "one_head"])
    join_pixels(changed)
    repeat_pixels(changed)
    ops = []
    for number, model in enumerate((quantized, changed)):
        open_session(model, path=tmp_path / f"{number}.onnx")
        ops.append([one.op_type for one in onnx.load(tmp_path / f"{number}.onnx").graph.node])
    assert ops[1].count("QLinearConv") == ops[0].count("QLinearConv") > 0
    assert ops[1].count("MatMulIntegerToFloat") == 2
    assert ops[1].count("Transpose") <= ops[0].count("Transpose") + 2  # of the heads' results


def test_a_head_behind_a_float_layer_stays(quantized):
    changed = copy(quantized)
    for one in changed.graph.node:
        if one.name == "head":
            one.input[0] = "image"
    assert multiply_heads(changed, ["head"]) == []
    assert "head_w" in {tensor.name for tensor in changed.graph.initializer}


def test_known_widths():
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["same"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("MaxPool", ["same"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["pooled", "", "six"], ["grown"], **NEAREST),
        helper.make_node("Relu", ["grown"], ["relu"]),
        helper.make_node("Concat", ["relu", "same"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w"], ["fewer"], kernel_shape=[3, 3], pads=[1, 0, 1, 1]),
        helper.make_node("Resize", ["joined", "", "four"], ["fourfold"], **NEAREST),
        helper.make_node("Add", ["fourfold", "relu"], ["both"]),
    ]
    scales = {"six": [1, 1, 2, 6], "four": [1, 1, 1, 4]}
    initializers = [numpy_helper.from_array(np.float32(value), name) for name, value in scales.items()]
    model = helper.make_model(helper.make_graph(nodes, "graph", [], [], initializers))
    found = find_divisors(model)
    assert {name: value for name, value in found.items() if value > 1} == {
        "grown": 6,
        "relu": 6,
        "joined": 6,
        "fourfold": 24,
        "both": 24,
    }


def test_pixels_are_joined_where_channels_are_few():
    for results, width, pixels in [(1, 3, 4), (8, 3, 4), (16, 3, 2), (32, 3, 1), (16, 1, 1), (8, 1, 4), (1, 1, 8)]:
        assert count_pixels((results, 16, width, width)) == pixels
    assert count_pixels((1, 256, 1, 1)) == 1
