"""Nodes of a graph put in place of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cellvision.export.quantize.fold import drop_unused_weights


class Rewriting:
    """New nodes for some of a graph's nodes; the graph changes when ``finish`` is called.

    Attributes:
        model: the graph.
        constants: values of the weights by name.
        makers: for every tensor the node that gives it.
        readers: for every tensor the nodes that take it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Nothing is changed yet."""
        self.model = model
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.makers = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self._instead: dict[str, list[onnx.NodeProto]] = {}

    def find_integers(self, tensor: str) -> str | None:
        """The 8 bit tensor that ``tensor`` is made from by a DequantizeLinear; None where it is not."""
        node = self.makers.get(tensor)
        return node.input[0] if node is not None and node.op_type == "DequantizeLinear" else None

    def find_rounding(self, tensor: str) -> onnx.NodeProto | None:
        """The QuantizeLinear that alone reads ``tensor``, maybe behind a ReLU; None where others read it too."""
        readers = self.readers.get(tensor, [])
        if len(readers) != 1 or readers[0].op_type not in ("QuantizeLinear", "Relu"):
            return None
        return readers[0] if readers[0].op_type == "QuantizeLinear" else self.find_rounding(readers[0].output[0])

    def add_weight(self, name: str, values: np.ndarray) -> str:
        """``name``, now of a weight."""
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def replace(self, node: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        """Put ``nodes`` in the place of ``node``: among them, they give the same outputs."""
        self._instead[node.output[0]] = list(nodes)

    def finish(self) -> None:
        """Change the graph; nodes and weights that nothing needs any longer are left out, and noted shapes."""
        nodes = [new for node in self.model.graph.node for new in self._instead.get(node.output[0], [node])]
        needed = {value.name for value in self.model.graph.output}
        kept = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        del self.model.graph.node[:], self.model.graph.value_info[:]  # shapes may have changed
        self.model.graph.node.extend(kept)
        drop_unused_weights(self.model)


def build_node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output."""
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def get_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Values of the node's attributes by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
