"""A float graph made ready for quantisation: folded, every tensor's type known, every node named."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from cellvision.errors import ExportError, explain


def prepare_graph(graph: Path) -> onnx.ModelProto:
    """The graph with batch norms and constants folded by ONNX Runtime's portable optimisations; its axes stay free.

    Raises:
        ExportError: the file is no graph that ONNX Runtime can load, or its weights are integers already.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared = Path(folder) / "prepared.onnx"
        try:
            # Symbolic shapes are left out: they need sympy, and only the types of tensors are needed here.
            quant_pre_process(graph, prepared, skip_symbolic_shape=True)
            model = onnx.load(prepared)
        except Exception as error:  # onnx and onnxruntime raise many kinds; all mean that there is no usable graph
            why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise ExportError(
                explain(got=f"{graph} cannot be prepared ({why})", need="an ONNX graph", hint="export it again")
            ) from error
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        raise ExportError(
            explain(got=f"{graph} is quantised already", need="a float graph", hint="pass the fp32 file of the bundle")
        )
    _name_nodes(model)
    pool_means(model)
    drop_foreign_domains(model)
    return model


def drop_foreign_domains(model: onnx.ModelProto) -> None:
    """Forget the operator sets that ONNX Runtime lists in every file it writes; ExportError if one is in use."""
    used = {node.domain for node in model.graph.node}
    if foreign := used - {"", "ai.onnx"}:
        raise ExportError(
            explain(
                got=f"the graph has operators of {', '.join(sorted(foreign))}",
                need="ONNX operators only, so that every runtime can load it",
                hint="export the net again with export_onnx",
            )
        )
    kept = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime.quantization without its advice: it logs on the root logger, where it would be taken for ours."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def pool_means(model: onnx.ModelProto) -> None:
    """GlobalAveragePool for each mean over height and width: the same, but ONNX Runtime has it on integers."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type != "ReduceMean" or attributes.get("keepdims", 1) != 1 or len(node.input) != 2:
            continue
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist() if node.input[1] in constants else []
        if sorted(axes) in ([2, 3], [-2, -1]) and _count_axes(model, node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


def _count_axes(model: onnx.ModelProto, tensor: str) -> int:
    return next((len(value.type.tensor_type.shape.dim) for value in model.graph.value_info if value.name == tensor), 0)


def _name_nodes(model: onnx.ModelProto) -> None:
    """A name of its own for every node: choosing and keeping go by name."""
    seen: Counter[str] = Counter()
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        seen[node.name] += 1
        if seen[node.name] > 1:
            node.name = f"{node.name}_{number}"
