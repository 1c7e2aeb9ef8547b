"""The same integers sooner: layers of a quantised graph in the forms that ONNX Runtime has fast code for.

Its integer convolution goes pixel by pixel, channels last, and computes 16 or more results at once. Few channels at
full resolution leave it idle: in a U-Net of 16 channels they took 32 of 89 ms at 520 x 704 px (1 thread), enlargements
another 7. Every form below is made of standard operators. Joined and repeated pixels are the same, bit by bit; of the
last layers the weights are rounded, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx

from cellvision.export.quantize.rewriting import Rewriting, build_node, get_attributes
from cellvision.export.quantize.widths import find_divisors, find_factors, keeps_width

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
"""Channels last and channels first: ONNX Runtime drops such transposes where it computes channels last."""


def join_pixels(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions of few channels that now compute several pixels of a row at each step.

    K neighbours need a kernel wider by K - 1 with zeros for what only the others see, a stride of K, and K times the
    channels, which lie in memory as the K pixels do, channels last.
    """
    rewriting, divisors = Rewriting(model), find_divisors(model)
    names = []
    for node in model.graph.node:
        pixels = _count_joined(node, rewriting)
        if pixels > 1:
            _join(node, pixels, rewriting, needs_cut=divisors.get(node.output[0], 1) % pixels != 0)
            names.append(node.name)
    rewriting.finish()
    return names


def count_pixels(shape: tuple[int, ...]) -> int:
    """Pixels of a row that are best computed together, of a convolution with weights of ``shape`` (O, C, h, w).

    Measured (AVX-512 VNNI, 1 thread, ONNX Runtime 1.31): full speed needs 16 results at once. From 32 on, or 16 with a
    kernel of one pixel, the zeros in the wider kernel cost more than is gained.

    Example:
        >>> count_pixels((16, 16, 3, 3)), count_pixels((1, 8, 1, 1)), count_pixels((64, 64, 3, 3))
        (2, 8, 1)
    """
    results, channels, _, width = shape
    if width == 1 and results >= 16:
        return 1
    return max(1, min(8 if width == 1 else 4, 32 // results, 256 // channels))


def repeat_pixels(model: onnx.ModelProto) -> list[str]:
    """Names of the enlargements that are now copies of integers: ONNX Runtime's Resize is slow channels last."""
    rewriting = Rewriting(model)
    names = []
    for node in model.graph.node:
        factors = find_factors(node, rewriting.constants) if node.op_type == "Resize" else None
        if factors is None or rewriting.find_integers(node.input[0]) is None:
            continue
        given, *scaling = rewriting.makers[node.input[0]].input
        rounding = rewriting.find_rounding(node.output[0])
        if rounding is not None and list(rounding.input[1:]) == scaling:
            rewriting.replace(rounding, *_repeat(node.name, given, rounding.output[0], factors, rewriting))
            names.append(node.name)
    rewriting.finish()
    return names


def multiply_heads(model: onnx.ModelProto, heads: Collection[str]) -> list[str]:
    """Names of those last layers that are now products of integers with float results.

    Scores and distances are not rounded, as they would be behind an integer convolution; the weights are, with one
    scale per channel. A head whose input is float stays as it is.

    Args:
        model: quantised.
        heads: names of convolutions of one pixel, see ``choose_heads``.
    """
    rewriting, divisors = Rewriting(model), find_divisors(model)
    names = []
    for node in model.graph.node:
        if node.name in heads and rewriting.find_integers(node.input[0]):
            rewriting.replace(node, *_multiply(node, rewriting, divisor=divisors.get(node.input[0], 1)))
            names.append(node.name)
    rewriting.finish()
    return names


def _count_joined(node: onnx.NodeProto, rewriting: Rewriting) -> int:
    if node.op_type != "Conv" or not all(rewriting.find_integers(name) for name in node.input):
        return 1
    weights = rewriting.constants.get(rewriting.find_integers(node.input[1]) or "")
    if weights is None or weights.ndim != 4 or not keeps_width(node) or not rewriting.find_rounding(node.output[0]):
        return 1
    attributes = get_attributes(node)
    plain = attributes.get("group", 1) == 1 and list(attributes.get("dilations", [1, 1])) == [1, 1]
    return count_pixels(weights.shape) if plain else 1


def _join(conv: onnx.NodeProto, pixels: int, rewriting: Rewriting, *, needs_cut: bool) -> None:
    name, rounding = conv.name, rewriting.find_rounding(conv.output[0])
    assert rounding is not None
    weights = rewriting.constants[rewriting.makers[conv.input[1]].input[0]]
    results, channels, height, width = weights.shape
    wide = np.zeros((pixels, results, channels, height, width + pixels - 1), weights.dtype)
    for pixel in range(pixels):
        wide[pixel, ..., pixel : pixel + width] = weights
    values = [wide.reshape(-1, *wide.shape[2:])]
    values += [np.tile(rewriting.constants[rewriting.makers[bias].input[0]], pixels) for bias in conv.input[2:]]
    scaled = []
    for number, (source, value) in enumerate(zip(conv.input[1:], values, strict=True)):
        _, scale, zero = (rewriting.constants[one] for one in rewriting.makers[source].input)
        parts = [value, *(np.tile(np.broadcast_to(one, results), pixels) for one in (scale, zero))]
        inputs = [rewriting.add_weight(f"{name}:{number}{part}", one) for part, one in zip("wsz", parts, strict=True)]
        scaled.append(build_node("DequantizeLinear", inputs, f"{name}:{number}", axis=0))
    attributes = get_attributes(conv)
    pads = list(attributes.pop("pads", [0, 0, 0, 0]))
    pads[3] += pixels - 1
    row_stride, _ = attributes.pop("strides", [1, 1])
    attributes |= {"kernel_shape": list(wide.shape[-2:]), "pads": pads, "strides": [row_stride, pixels]}
    inputs = [conv.input[0], *(node.output[0] for node in scaled)]
    joined = build_node("Conv", inputs, conv.output[0], **attributes)
    joined.name = name
    rewriting.replace(conv, *scaled, joined)
    parted = [
        build_node("QuantizeLinear", list(rounding.input), f"{name}:joined"),
        build_node("Transpose", [f"{name}:joined"], f"{name}:last", perm=TO_LAST),
        *_reshape(f"{name}:last", f"{name}:parted", "Mul", pixels, results, rewriting),
    ]
    if needs_cut:
        parted += _cut(f"{name}:parted", rewriting.makers[conv.input[0]].input[0], f"{name}:cut", rewriting)
    back = build_node("Transpose", [parted[-1].output[0]], rounding.output[0], perm=TO_FIRST)
    rewriting.replace(rounding, *parted, back)


def _reshape(
    given: str, result: str, op: str, pixels: int, channels: int, rewriting: Rewriting
) -> list[onnx.NodeProto]:
    """``given`` (B, H, W, any) with ``channels``, and ``pixels`` times as wide (op "Mul") or as narrow ("Div").

    No -1 in the shape: with a batch of none, as of masks where there is no cell, it could not be found.
    """
    factors = rewriting.add_weight(f"{result}:factors", np.array([1, 1, pixels]))
    last = rewriting.add_weight(f"{result}:channels", np.array([channels]))
    return [
        build_node("Shape", [given], f"{result}:from", start=0, end=3),
        build_node(op, [f"{result}:from", factors], f"{result}:to"),
        build_node("Concat", [f"{result}:to", last], f"{result}:shape", axis=0),
        build_node("Reshape", [given, f"{result}:shape"], result),
    ]


def _cut(given: str, like: str, result: str, rewriting: Rewriting) -> list[onnx.NodeProto]:
    """``given`` (B, H, W', C), cut to the width of ``like`` (B, C, H, W)."""
    first, axis = (rewriting.add_weight(f"{result}:{key}", np.array([key])) for key in (0, 2))
    width = build_node("Shape", [like], f"{result}:width", start=3, end=4)
    return [width, build_node("Slice", [given, first, f"{result}:width", axis], result)]


def _repeat(name: str, given: str, result: str, factors: tuple[int, int], rewriting: Rewriting) -> list[onnx.NodeProto]:
    """Every pixel beside itself, channels last; then every row behind itself."""
    rows, columns = factors
    order = rewriting.add_weight(f"{name}:order", np.array(TO_LAST))
    growth = rewriting.add_weight(f"{name}:growth", np.array([1, rows, columns, 1]))
    between = rewriting.add_weight(f"{name}:between", np.array([2]))
    return [
        build_node("Shape", [given], f"{name}:shape"),
        build_node("Gather", [f"{name}:shape", order], f"{name}:size"),
        build_node("Mul", [f"{name}:size", growth], f"{name}:grown"),
        build_node("Transpose", [given], f"{name}:last", perm=TO_LAST),
        build_node("Concat", [f"{name}:last"] * columns, f"{name}:columns", axis=3),
        build_node("Unsqueeze", [f"{name}:columns", between], f"{name}:row"),
        build_node("Concat", [f"{name}:row"] * rows, f"{name}:rows", axis=2),
        build_node("Reshape", [f"{name}:rows", f"{name}:grown"], f"{name}:repeated"),
        build_node("Transpose", [f"{name}:repeated"], result, perm=TO_FIRST),
    ]


def _multiply(conv: onnx.NodeProto, rewriting: Rewriting, *, divisor: int) -> list[onnx.NodeProto]:
    name = conv.name
    weights = rewriting.constants[conv.input[1]][:, :, 0, 0]
    results, channels = weights.shape
    pixels = int(np.gcd(count_pixels((results, channels, 1, 1)), divisor))
    scale = np.maximum(np.abs(weights).max(axis=1), 1e-12).astype(np.float32) / 127
    steps = np.rint(weights / scale[:, None]).astype(np.int8)
    # K pixels of a row times a matrix with the weights K times on its diagonal
    values = {"w": np.kron(np.eye(pixels, dtype=np.int8), steps.T), "s": np.tile(scale, pixels)}
    values["z"] = np.zeros(pixels * results, np.int8)
    if len(conv.input) > 2:
        values["b"] = np.tile(rewriting.constants[conv.input[2]], pixels)
    made = {key: rewriting.add_weight(f"{name}:{key}", value) for key, value in values.items()}
    integers, *scaling = rewriting.makers[conv.input[0]].input
    nodes = [build_node("Transpose", [integers], f"{name}:last", perm=TO_LAST)]
    if pixels > 1:
        nodes += _reshape(f"{name}:last", f"{name}:joined", "Div", pixels, pixels * channels, rewriting)
    nodes += [
        build_node("DequantizeLinear", [nodes[-1].output[0], *scaling], f"{name}:given"),
        build_node("DequantizeLinear", [made["w"], made["s"], made["z"]], f"{name}:weights", axis=1),
        build_node("MatMul", [f"{name}:given", f"{name}:weights"], f"{name}:product"),
    ]
    if "b" in made:
        nodes.append(build_node("Add", [f"{name}:product", made["b"]], f"{name}:sum"))
    if pixels > 1:
        nodes += _reshape(nodes[-1].output[0], f"{name}:parted", "Mul", pixels, results, rewriting)
    return [*nodes, build_node("Transpose", [nodes[-1].output[0]], conv.output[0], perm=TO_FIRST)]
