"""Which nodes of a graph get integer arithmetic: those between its first and its last layers with weights."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx

from cellvision.errors import ConfigError, ExportError, explain

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights; where both inputs are activations, as in attention, a MatMul counts as none."""

JOINS = ("Add", "Mul", "Concat")
BETWEEN = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", *JOINS)
"""Operators that ONNX Runtime computes on integers without changing to float and back between two layers."""

CARRIERS = {
    *WEIGHTED,
    *BETWEEN,
    *("Sub", "Div", "HardSigmoid", "HardSwish", "Mish", "Gelu", "Elu", "Tanh", "Erf", "Softplus", "Softmax"),
    *("GlobalMaxPool", "ReduceMean", "ReduceMax", "InstanceNormalization", "GroupNormalization"),
    *("LayerNormalization", "BatchNormalization", "Pad", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"),
    *("Slice", "Split", "Identity", "Dropout", "Expand", "Cast", "RoiAlign", "GridSample", "DepthToSpace"),
}
"""Operators that hand feature maps on. What is not among them (TopK, NonMaxSuppression, Gather, comparisons) ends a
path: behind it are scores, boxes and indices."""

ALL_INPUTS = ("Add", "Mul", "Sub", "Div", "Concat", "MatMul")
NARROW = 3  # input channels; see choose_nodes


def choose_nodes(model: onnx.ModelProto, *, form: str, keep_float: Sequence[str] = ()) -> list[str]:
    """Names of the nodes to quantise, in the graph's order.

    By operator and by position, so that it holds for any net. What lies before the first layer with weights
    (normalisation, padding) and behind the last ones (scores, boxes, masks) stays float; so do the last layers
    themselves, norms, and arithmetic with constants. A path that leads through a box into a later layer does not
    make what decodes the box a part of the trunk. See ``choose_heads`` for last layers that need not be float.

    Args:
        model: prepared by ``prepare_graph``.
        form: "onnxruntime" takes what lies between layers along, and leaves a first convolution of up to 3 channels:
            as integers it takes 11.6 ms instead of 4.9 (3 to 16 channels, 528 x 704 px, 1 thread), and the image's
            counts keep their precision. "tensorrt" takes layers and sums: the builder passes scales on by itself.
        keep_float: names of nodes to leave, or patterns of them with ``*``.

    Raises:
        ConfigError: a pattern in ``keep_float`` that no node has.
        ExportError: there is nothing to quantise.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if is_weighted(node, weights)]
    behind, before = _reach(model, layers, forwards=True), _reach(model, layers, forwards=False)
    chosen = [
        node.name
        for node in model.graph.node
        if node.name in before
        and (node.name in behind or is_weighted(node, weights))
        and _suits(node, form, weights)
        and not (form == "onnxruntime" and node.name not in behind and _is_narrow(node, model))
    ]
    kept = _match(keep_float, [*chosen, *choose_heads(model, form=form)])
    chosen = [name for name in chosen if name not in kept]
    if not any(node.name in chosen for node in layers):
        raise ExportError(
            explain(
                got=f"{len(layers)} layers with weights, and none of them between others or not kept in float",
                need="a layer to quantise",
                hint="fewer names in keep_float, or the fp32 graph",
            )
        )
    return chosen


def choose_heads(model: onnx.ModelProto, *, form: str, keep_float: Sequence[str] = ()) -> list[str]:
    """Names of the last layers that get integer weights and give floats: convolutions of one pixel.

    See ``multiply_heads`` for what becomes of them.

    Args:
        model: prepared by ``prepare_graph``.
        form: as for ``choose_nodes``; "tensorrt" has none.
        keep_float: names of nodes to leave, or patterns; those of other nodes too.
    """
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    points = [node for node in _find_last(model) if node.op_type == "Conv" and shapes[node.input[1]][2:] == [1, 1]]
    names = [node.name for node in points if form == "onnxruntime" and _is_plain(node)]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in keep_float)]


def is_weighted(node: onnx.NodeProto, weights: set[str]) -> bool:
    """Whether the node multiplies an activation by weights of the file."""
    return node.op_type in WEIGHTED and node.input[1] in weights and node.input[0] not in weights


def find_heads(model: onnx.ModelProto) -> list[str]:
    """Outputs of the last layers with weights: continuous, where behind them TopK and suppression jump."""
    return [node.output[0] for node in _find_last(model)]


def _find_last(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if is_weighted(node, weights)]
    before = _reach(model, layers, forwards=False)
    return [node for node in layers if node.name not in before]


def _reach(model: onnx.ModelProto, layers: Sequence[onnx.NodeProto], *, forwards: bool) -> set[str]:
    """Names of all nodes that lie behind (forwards) or before one of ``layers`` on a path of feature maps."""
    found: set[str] = set()
    names = {node.name for node in layers}
    live: set[str] = set()  # tensors on a path
    for node in model.graph.node if forwards else reversed(model.graph.node):
        carried, given = _carried(node), list(node.output)
        seen, passed = (carried, given) if forwards else (given, carried)
        if node.op_type in CARRIERS and live.intersection(seen):
            found.add(node.name)
            live.update(passed)
        if node.name in names:
            live.update(passed)
    return found


def _carried(node: onnx.NodeProto) -> list[str]:
    """The inputs that hold feature maps; the others are weights, sizes, boxes and grids."""
    return [name for name in (node.input if node.op_type in ALL_INPUTS else node.input[:1]) if name]


def _suits(node: onnx.NodeProto, form: str, weights: set[str]) -> bool:
    if node.op_type in WEIGHTED:
        return is_weighted(node, weights)
    if node.op_type in JOINS and any(name in weights for name in node.input):
        return False  # the scale and shift of a norm: as integers they would be rounded to 256 steps
    return node.op_type in (BETWEEN if form == "onnxruntime" else ("Add",))


def _is_narrow(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return node.op_type == "Conv" and shapes[node.input[1]][1] <= NARROW


def _is_plain(conv: onnx.NodeProto) -> bool:
    """Whether a convolution has one group, no stride and no padding."""
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in conv.attribute}
    steps = [attributes.get("group", 1), *attributes.get("strides", [])]
    return set(steps) == {1} and not any(attributes.get("pads", []))


def _match(patterns: Sequence[str], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not matching:
            raise ConfigError(
                explain(
                    got=f"keep_float has {pattern!r}, which no quantised node is called",
                    need=f"names among {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
                    hint="a name of the report, or a pattern such as 'node_Conv_*'",
                )
            )
        found |= matching
    return found
