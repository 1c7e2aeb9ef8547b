"""32 bit biases in place of float ones, as integer convolutions add them."""

from __future__ import annotations

import numpy as np
import onnx

from cellvision.export.quantize.rewriting import Rewriting, build_node

MOST = 2**30
"""Largest bias in its own steps; half of what 32 bits hold is left for the sum."""

LAYERS = ("Conv", "Gemm")


def round_biases(model: onnx.ModelProto) -> list[str]:
    """Names of the layers on integers whose bias is now one, too: a multiple of input scale times weight scale.

    That is the step of the sum which it is added to, some thousandth of a step of the result. ONNX Runtime rounds in
    the same way when it opens a graph with float biases; written down, a graph says what will be computed. Where the
    weights of a channel are as good as none, their steps are made so large that the bias can be held.
    """
    rewriting = Rewriting(model)
    names = []
    for node in model.graph.node:
        if node.op_type not in LAYERS or len(node.input) < 3 or node.input[2] not in rewriting.constants:
            continue
        if all(rewriting.find_integers(name) for name in node.input[:2]):
            rewriting.replace(node, *_round(node, rewriting))
            names.append(node.name)
    rewriting.finish()
    return names


def _round(node: onnx.NodeProto, rewriting: Rewriting) -> list[onnx.NodeProto]:
    given, weights = (rewriting.makers[name] for name in node.input[:2])
    bias = rewriting.constants[node.input[2]].astype(np.float64)
    integers, steps = (rewriting.constants[name] for name in weights.input[:2])
    input_step = float(rewriting.constants[given.input[1]])
    needed = np.abs(bias) / input_step / MOST
    nodes = []
    if (needed > steps).any():
        wider = np.maximum(steps, needed).astype(np.float32)
        shape = (-1, *[1] * (integers.ndim - 1))
        values = np.rint(integers * (steps.astype(np.float64) / wider).reshape(shape)).astype(np.int8)
        made = [
            rewriting.add_weight(f"{node.name}:{key}", value) for key, value in (("weights", values), ("steps", wider))
        ]
        weights = build_node("DequantizeLinear", [*made, weights.input[2]], f"{node.name}:weight", axis=0)
        nodes, steps = [weights], wider
    bias_steps = (steps.astype(np.float64) * input_step).astype(np.float32)
    values = {"bias": np.rint(bias / bias_steps).astype(np.int32), "bias_steps": bias_steps}
    values["bias_zero"] = np.zeros(bias.shape, np.int32)
    made = [rewriting.add_weight(f"{node.name}:{key}", value) for key, value in values.items()]
    rounded = build_node("DequantizeLinear", made, f"{node.name}:bias_rounded", axis=0)
    layer = onnx.NodeProto()
    layer.CopyFrom(node)
    layer.input[1], layer.input[2] = weights.output[0], rounded.output[0]
    return [*nodes, rounded, layer]
