"""Whether an ONNX graph can become an engine, and in which precision it computes; said before anything is built.

The builder itself finds most of these faults only after minutes, and says them in the words of its own source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from cellvision.errors import ExportError, explain
from cellvision.ops.topk import LARGEST_K
from cellvision.runtime.engines.sidecar import ELEMENTS, EngineTensor

_PARTED = "the parted form of the net, trunk and masks, between which the runtime drops doubles"
_QUANTISED = "the symmetric form, quantize with form=tensorrt: int8 with zero point 0, biases in float"
_HINTS = {
    "NonMaxSuppression": _PARTED,
    "NonZero": _PARTED,
    "RoiAlign": "pooling by GridSample, as in the parted form of the net",
    "DeformConv": "plain convolutions",
    "Compress": _PARTED,
    "Unique": _PARTED,
    "MaxUnpool": "Resize or ConvTranspose",
    **dict.fromkeys(
        ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"), _QUANTISED
    ),
}
"""Operators without a kernel in TensorRT-RTX, or with results whose size is known only after a run."""

_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSED_ON = ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose")


def load_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file, with the type of every value in it.

    Raises:
        ExportError: it is not there, or not ONNX.
    """
    try:
        model = onnx.load(path)
        del model.graph.value_info[:]  # a converter that forgot to change these would be believed
        return onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # protobuf and onnx raise their own kinds
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ExportError(
            explain(got=f"{path} cannot be read ({why[:200]})", need="an ONNX file", hint="export the bundle again")
        ) from error


def check_graph(model: onnx.ModelProto, path: Path) -> None:
    """Raise ExportError, naming node and operator, for what no engine can be built of."""
    constants = _collect_constants(model)
    for node in _iterate_nodes(model.graph):
        if node.op_type in _HINTS:
            raise ExportError(_refuse(path, node, "operators that an engine can have", _HINTS[node.op_type]))
        if node.op_type == "TopK" and (k := constants.get(node.input[1])) is not None and k.max() > LARGEST_K:
            hint = "several in turn, as cellvision.ops.topk has them"
            raise ExportError(_refuse(path, node, f"K of at most {LARGEST_K}, not {k.max()}", hint))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and (why := _find_fault(node, constants)):
            raise ExportError(_refuse(path, node, why, _QUANTISED))
    for tensor in (part for parts in describe_tensors(model) for part in parts):
        if tensor.element not in ELEMENTS:
            got, need = f"{path} has {tensor.name!r} of {tensor.element}", f"one of {', '.join(ELEMENTS)}"
            raise ExportError(explain(got=got, need=need, hint="input_dtype=float32"))


def count_layers(model: onnx.ModelProto) -> dict[str, int]:
    """Number of layers with weights that compute in "int8", "fp16" and "fp32"; those that are 0 are left out."""
    makers = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    found: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in _WITH_WEIGHTS:
            continue
        source, is_rounded = _find_source(node.input[1], makers)
        if source not in weights and (source not in makers or makers[source].op_type != "Constant"):
            continue
        maker = makers.get(node.input[0])
        if is_rounded and maker is not None and maker.op_type == "DequantizeLinear":
            found["int8"] += 1
        else:
            found["fp16" if kinds.get(node.output[0]) == TensorProto.FLOAT16 else "fp32"] += 1
    return dict(found)


def find_precision(layers: dict[str, int]) -> str:
    """The lowest precision in which any layer computes.

    Example:
        >>> find_precision({"fp32": 3, "int8": 20})
        'int8'
    """
    return next((precision for precision in ("int8", "fp16") if layers.get(precision)), "fp32")


def describe_tensors(model: onnx.ModelProto) -> tuple[tuple[EngineTensor, ...], tuple[EngineTensor, ...]]:
    """Inputs and outputs of a graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = (value for value in model.graph.input if value.name not in weights)
    return tuple(map(_describe, inputs)), tuple(map(_describe, model.graph.output))


def _describe(value: onnx.ValueInfoProto) -> EngineTensor:
    kind = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "free" for dim in kind.shape.dim]
    element = TensorProto.DataType.Name(kind.elem_type).lower()
    return EngineTensor(name=value.name, element=element, shape=tuple(shape))


def _iterate_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those inside of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _iterate_nodes(inner)


def _collect_constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Numbers known by name: zero points and Ks. Weights are not among them; they are large, and floats."""
    found = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }
    for node in _iterate_nodes(model.graph):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
            elif attribute.name in ("value_int", "value_ints"):
                found[node.output[0]] = np.array([attribute.i, *attribute.ints] if attribute.ints else attribute.i)
    return found


def _find_fault(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> str:
    """What an engine needs of a node that quantises and this one has not; empty where there is nothing."""
    rounded = constants.get(node.input[0])
    if node.op_type == "DequantizeLinear" and rounded is not None and rounded.dtype == np.int32:
        return "biases in float, not in int32"
    zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if len(node.input) < 3 and node.op_type == "QuantizeLinear" and not _has_type(node):
        return "int8, not uint8"
    if zero is not None and zero.dtype == np.uint8:
        return "int8, not uint8"
    return "the zero point 0" if zero is not None and np.any(zero.astype(np.int64)) else ""


def _has_type(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "output_dtype" and attribute.i for attribute in node.attribute)


def _find_source(name: str, makers: dict[str, onnx.NodeProto]) -> tuple[str, bool]:
    """Where a weight comes from, through what only changes its form; and whether it is rounded on the way."""
    is_rounded = False
    while name in makers and makers[name].op_type in _PASSED_ON:
        is_rounded |= makers[name].op_type == "DequantizeLinear"
        name = makers[name].input[0]
    return name, is_rounded


def _refuse(path: Path, node: onnx.NodeProto, need: str, hint: str) -> str:
    where = f"{node.name!r}" if node.name else f"that makes {node.output[0]!r}"
    return explain(got=f"{path}: node {where} ({node.op_type})", need=need, hint=hint)
