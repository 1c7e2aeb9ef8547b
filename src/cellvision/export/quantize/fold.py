"""Integer weights instead of float weights behind a QuantizeLinear: the same values in a quarter of the bytes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

FOLDED = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


def fold_weights(model: onnx.ModelProto) -> int:
    """How many weights were folded; the model is changed in place and gives the same results.

    Graphs of nets trained with quantisation hold float weights behind QuantizeLinear, so that the file is as
    large as the float one. Scale and zero point must be constants too; 8 bit types only.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    folded = []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and all(name in constants for name in node.input if name):
            values = _quantize(node, *(numpy_helper.to_array(constants[name]) for name in node.input if name))
            if values is not None:
                model.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
                folded.append(node)
    for node in folded:
        model.graph.node.remove(node)
    drop_unused_weights(model)
    return len(folded)


def drop_unused_weights(model: onnx.ModelProto) -> None:
    """Remove the weights that no node reads and no output gives."""
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _quantize(
    node: onnx.NodeProto, weight: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None
) -> np.ndarray | None:
    """What QuantizeLinear gives: rounded half to even, then clipped. None for what is not per tensor or channel."""
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    if zero_point is None:
        zero_point = np.zeros_like(scale, dtype=np.uint8)
    blocks = attributes.get("block_size", 0) or scale.ndim > 1
    if blocks or onnx.helper.np_dtype_to_tensor_dtype(zero_point.dtype) not in FOLDED:
        return None
    shape = [1] * weight.ndim
    if scale.size > 1:
        shape[attributes.get("axis", 1)] = -1
    limits = np.iinfo(zero_point.dtype)
    steps = np.rint(weight / scale.reshape(shape)) + zero_point.reshape(shape).astype(np.float32)
    values: np.ndarray = np.clip(steps, limits.min, limits.max).astype(zero_point.dtype)
    return values
