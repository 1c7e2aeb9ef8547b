"""What is known of the widths of feature maps whose size is free."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from cellvision.export.quantize.rewriting import get_attributes

JOINS = {"Add", "Mul", "Sub", "Div", "Concat"}
SAME = {"QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Identity", "Cast"}


def find_divisors(model: onnx.ModelProto) -> dict[str, int]:
    """For tensors (B, C, H, W) a number that divides W at any size of the image; 1 where none is known.

    A map enlarged twofold has an even width, and so has all that is joined with it.
    """
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, int] = {}
    for node in model.graph.node:
        given = [found.get(name, 1) for name in node.input]
        if node.op_type in JOINS:  # of one width; or of width 1, which nothing but 1 divides
            divisor = math.lcm(*given)
        elif node.op_type in SAME or (node.op_type == "Conv" and keeps_width(node)):
            divisor = given[0]
        elif node.op_type == "Resize" and (factors := find_factors(node, scales)):
            divisor = given[0] * factors[1]
        else:
            continue
        found[node.output[0]] = divisor
    return found


def keeps_width(conv: onnx.NodeProto) -> bool:
    """Whether a convolution's results are as wide as what it takes."""
    attributes = get_attributes(conv)
    width = attributes.get("kernel_shape", [0, 0])[-1]
    pads = attributes.get("pads", [0, 0, 0, 0])
    return (
        len(pads) == 4
        and attributes.get("auto_pad", b"NOTSET") == b"NOTSET"
        and attributes.get("strides", [1, 1])[-1] == 1
        and attributes.get("dilations", [1, 1])[-1] == 1
        and pads[1] + pads[3] == width - 1
    )


def find_factors(resize: onnx.NodeProto, constants: dict[str, np.ndarray]) -> tuple[int, int] | None:
    """How many rows and columns each pixel becomes; None where a Resize does more than to repeat pixels."""
    attributes = get_attributes(resize)
    ways = [attributes.get(key) for key in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    scales = constants.get(resize.input[2]) if len(resize.input) == 3 else None
    if ways != [b"nearest", b"asymmetric", b"floor"] or attributes.get("axes") or scales is None or scales.size != 4:
        return None
    images, channels, rows, columns = (float(value) for value in scales)
    if (images, channels) != (1, 1) or min(rows, columns) < 1 or not (rows.is_integer() and columns.is_integer()):
        return None
    return int(rows), int(columns)
