"""Biases as integers, and transposed convolutions as convolutions: what they compute, in small graphs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cellvision.export.quantize.biases import round_biases
from cellvision.export.quantize.transposed import part_pixels

STEP, RESULT_STEP = np.float32(0.02), np.float32(0.1)


def build_graph(op, weights, steps, bias, *, axis, **attributes):
    """uint8 in, a layer on integers with a ReLU, uint8 out."""
    values = {
        "w": weights, "ws": steps.astype(np.float32), "wz": np.zeros(steps.size, np.int8), "b": bias,
        "s": STEP, "z": np.uint8(0), "rs": RESULT_STEP,
    }  # fmt: skip
    make = helper.make_node
    nodes = [
        make("DequantizeLinear", ["x", "s", "z"], ["xf"]),
        make("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=axis),
        make(op, ["xf", "wf", "b"], ["y"], name="layer", **attributes),
        make("Relu", ["y"], ["yr"]),
        make("QuantizeLinear", ["yr", "rs", "z"], ["found"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", weights.shape[1 - axis], "h", "w"])],
        [helper.make_tensor_value_info("found", TensorProto.UINT8, ["n", weights.shape[axis], "hh", "ww"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model, x, tmp_path=None):
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if tmp_path is not None:
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_biases_are_whole_steps_of_the_sum(rng):
    weights = rng.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
    steps, bias = rng.uniform(0.01, 0.03, 6), rng.normal(0, 2, 6).astype(np.float32)
    model = build_graph("Conv", weights, steps, bias, axis=0, pads=[1, 1, 1, 1])
    x = rng.integers(0, 256, (2, 4, 9, 11)).astype(np.uint8)
    before = run(model, x)
    assert round_biases(model) == ["layer"]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = values["layer:bias"] * values["layer:bias_steps"].astype(np.float64)
    assert values["layer:bias"].dtype == np.int32
    assert (np.abs(found - bias) <= values["layer:bias_steps"] * 0.5001).all()
    assert np.allclose(values["layer:bias_steps"], steps.astype(np.float32) * STEP)
    assert np.array_equal(run(model, x), before)  # what ONNX Runtime does by itself


def test_a_bias_that_its_steps_cannot_hold_gets_wider_ones(rng):
    """A channel that a norm has switched off: weights of nothing, a bias of 5."""
    weights = np.zeros((2, 4, 1, 1), np.int8)
    weights[1] = 50
    bias = np.array([5.0, 1.0], np.float32)
    model = build_graph("Conv", weights, np.array([1e-8, 0.01]), bias, axis=0)
    round_biases(model)
    x = rng.integers(0, 256, (1, 4, 3, 3)).astype(np.uint8)
    found = run(model, x)[0]
    assert (found[0] == 50).all()
    expected = np.rint((x[0].astype(float).sum(0) * STEP * 0.5 + 1) / RESULT_STEP).clip(0, 255)
    assert np.abs(found[1] - expected).max() <= 1


@pytest.mark.parametrize("bias_is_integer", [False, True])
def test_a_transposed_convolution_is_one_on_integers(rng, tmp_path, bias_is_integer):
    weights = rng.integers(-127, 128, (4, 6, 2, 2)).astype(np.int8)
    steps, bias = rng.uniform(0.001, 0.003, 6), rng.normal(0, 2, 6).astype(np.float32)
    model = build_graph("ConvTranspose", weights, steps, bias, axis=1, strides=[2, 2])
    x = rng.integers(0, 256, (2, 4, 5, 7)).astype(np.uint8)
    before = run(model, x)
    if bias_is_integer:
        bias_steps = (steps * STEP).astype(np.float32)
        for name, value in (("bi", np.rint(bias / bias_steps).astype(np.int32)), ("bs", bias_steps)):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["bi", "bs"], ["bf"], axis=0))
        next(node for node in model.graph.node if node.name == "layer").input[2] = "bf"
    assert part_pixels(model) == ["layer"]
    round_biases(model)
    found = run(model, x, tmp_path)
    assert found.shape == (2, 6, 10, 14)
    assert np.abs(found.astype(int) - before).max() <= 1  # the bias
    assert (found != before).mean() < 0.02
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in optimized
    assert "ConvTranspose" not in optimized


@pytest.mark.parametrize("attributes", [{"strides": [1, 1]}, {"strides": [2, 2], "pads": [1, 1, 1, 1]}])
def test_other_transposed_convolutions_stay(rng, attributes):
    weights = rng.integers(-127, 128, (4, 6, 2, 2)).astype(np.int8)
    model = build_graph("ConvTranspose", weights, np.full(6, 0.01), np.zeros(6, np.float32), axis=1, **attributes)
    assert part_pixels(model) == []
