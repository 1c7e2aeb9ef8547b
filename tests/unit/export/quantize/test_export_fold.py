import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cellvision.export.quantize.fold import fold_weights


def node(op, name, *inputs, **attributes):
    return helper.make_node(op, list(inputs), [name], name=name, **attributes)


def run(model, image):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})


def get_constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize(("op", "axis"), [("Conv", 0), ("ConvTranspose", 1), ("Gemm", 1)])
def test_folding_changes_the_file_and_not_the_results(op, axis):
    rng = np.random.default_rng(0)
    shape = (6, 6) if op == "Gemm" else (6, 6, 3, 3)
    weight = rng.normal(0, 1, shape).astype(np.float32)
    scales = (np.abs(weight).max(axis=tuple(i for i in range(len(shape)) if i != axis)) / 100).astype(np.float32)
    values = {"w": weight, "s": scales, "z": np.zeros(6, np.int8), "a": np.float32(0.02), "n": np.uint8(100)}
    nodes = [
        node("QuantizeLinear", "xq", "image", "a", "n"),
        node("DequantizeLinear", "x", "xq", "a", "n"),
        node("QuantizeLinear", "wq", "w", "s", "z", axis=axis),
        node("DequantizeLinear", "wf", "wq", "s", "z", axis=axis),
        node(op, "y", "x", "wf"),
    ]
    dims, result = (["b", 6], ["b", 6]) if op == "Gemm" else (["b", 6, 9, 9], ["b", 6, "h", "w"])
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    image = rng.normal(0, 1, [2, *dims[1:]]).astype(np.float32)
    before = run(model, image)[0]

    assert fold_weights(model) == 1

    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_array_equal(run(model, image)[0], before)
    assert {name: value.dtype.name for name, value in get_constants(model).items()} == {
        "wq": "int8",
        "s": "float32",
        "z": "int8",
        "a": "float32",
        "n": "uint8",
    }
    assert [one.name for one in model.graph.node] == ["xq", "x", "wf", "y"]
    assert fold_weights(model) == 0


def test_leaves_what_it_cannot_fold():
    """A scale that is computed, and weights of 16 bits."""
    values = {"w": np.ones((2, 2), np.float32), "s": np.float32(0.1), "z": np.int16(0)}
    nodes = [
        node("ReduceMax", "top", "image", keepdims=0),
        node("QuantizeLinear", "a", "w", "top"),
        node("QuantizeLinear", "b", "w", "s", "z"),
        node("Cast", "c", "a", to=TensorProto.FLOAT),
        node("Cast", "d", "b", to=TensorProto.FLOAT),
        node("Add", "y", "c", "d"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert fold_weights(model) == 0
    assert [one.name for one in model.graph.node] == [one.name for one in nodes]
