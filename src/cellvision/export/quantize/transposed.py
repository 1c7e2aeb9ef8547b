"""Transposed convolutions that lay pixels beside each other, as convolutions: of those there are integer ones."""

from __future__ import annotations

import numpy as np
import onnx

from cellvision.export.quantize.rewriting import Rewriting, build_node, get_attributes


def part_pixels(model: onnx.ModelProto) -> list[str]:
    """Names of the transposed convolutions on integers that are now of one pixel, their results laid out behind.

    Where the stride is as large as the kernel, every pixel of the result comes from one pixel alone: a convolution
    gives all of them as channels, and DepthToSpace moves integers. The results are the same, bit by bit.
    """
    rewriting = Rewriting(model)
    names = []
    for node in model.graph.node:
        rounding = rewriting.find_rounding(node.output[0])
        if node.op_type == "ConvTranspose" and rounding is not None and _is_plain(node, rewriting):
            _part(node, rounding, rewriting)
            names.append(node.name)
    rewriting.finish()
    return names


def _is_plain(node: onnx.NodeProto, rewriting: Rewriting) -> bool:
    if not all(rewriting.find_integers(name) for name in node.input[:2]):
        return False
    attributes = get_attributes(node)
    kernel = list(rewriting.constants[rewriting.makers[node.input[1]].input[0]].shape[2:])
    flush = list(attributes.get("strides", [1, 1])) == kernel and kernel[0] == kernel[1]
    shifted = any(attributes.get("pads", [])) or any(attributes.get("output_padding", []))
    spread = any(one != 1 for one in attributes.get("dilations", []))
    return flush and not shifted and not spread and attributes.get("group", 1) == 1


def _part(node: onnx.NodeProto, rounding: onnx.NodeProto, rewriting: Rewriting) -> None:
    scaled = rewriting.makers[node.input[1]]
    weights, steps, zeros = (rewriting.constants[name] for name in scaled.input)
    channels, results, side, _ = weights.shape
    repeats = side * side
    values = {
        "w": weights.transpose(1, 2, 3, 0).reshape(results * repeats, channels, 1, 1),
        "s": np.repeat(np.broadcast_to(steps, results), repeats),
        "z": np.repeat(np.broadcast_to(zeros, results), repeats),
    }
    made = [rewriting.add_weight(f"{node.name}:{key}", value) for key, value in values.items()]
    inputs = [node.input[0], f"{node.name}:weights"]
    nodes = [build_node("DequantizeLinear", made, inputs[1], axis=0)]
    if len(node.input) > 2 and node.input[2] in rewriting.constants:
        bias = np.repeat(rewriting.constants[node.input[2]], repeats)
        inputs.append(rewriting.add_weight(f"{node.name}:b", bias))
    elif len(node.input) > 2:
        parts = [rewriting.constants[name] for name in rewriting.makers[node.input[2]].input]
        parts = [np.repeat(np.broadcast_to(part, results), repeats) for part in parts]
        names = [rewriting.add_weight(f"{node.name}:b{key}", part) for key, part in zip("wsz", parts, strict=False)]
        inputs.append(f"{node.name}:bias")
        nodes.append(build_node("DequantizeLinear", names, inputs[2], axis=0))
    conv = build_node("Conv", inputs, node.output[0], kernel_shape=[1, 1])
    conv.name = node.name
    rewriting.replace(node, *nodes, conv)
    parted = f"{rounding.output[0]}:parted"
    rewriting.replace(
        rounding,
        build_node("QuantizeLinear", list(rounding.input), parted),
        build_node("DepthToSpace", [parted], rounding.output[0], blocksize=side, mode="CRD"),
    )
