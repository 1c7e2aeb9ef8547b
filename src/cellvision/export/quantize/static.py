"""Static 8 bit quantisation of a float graph after training: QuantizeLinear/DequantizeLinear in standard ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData

from cellvision.errors import ExportError, check_choice, explain
from cellvision.export.quantize.calibration import METHODS, Feed, measure_ranges
from cellvision.export.quantize.faster import join_pixels, multiply_heads, repeat_pixels
from cellvision.export.quantize.fold import fold_weights
from cellvision.export.quantize.nodes import WEIGHTED, choose_heads, choose_nodes
from cellvision.export.quantize.preparing import drop_foreign_domains, prepare_graph, quiet
from cellvision.export.quantize.transposed import part_pixels

FORMS = ("onnxruntime", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was quantised and how.

    Attributes:
        form: one of FORMS.
        method: of calibration.
        calibration_images: inputs that the ranges were measured on.
        quantized: names of the nodes with integer arithmetic, last layers with float results among them.
        kept: names of the layers with weights that stayed float.
        float_bytes, bytes: size of the file before and after.
    """

    form: str
    method: str
    calibration_images: int
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    float_bytes: int
    bytes: int

    def to_record(self) -> dict[str, Any]:
        """Plain data for a manifest."""
        return asdict(self)


class Quantizer:
    """A float graph with its measured ranges, from which 8 bit files with more or fewer float nodes are written.

    Measuring takes long, writing does not: a search for sensitive layers makes one of these and many files.

    Attributes:
        model: the prepared float graph.
        nodes: names of all nodes that can be quantised.
        layers: those among them with weights.
    """

    def __init__(
        self,
        graph: Path,
        *,
        feeds: Sequence[Feed],
        method: str = "minmax",
        form: str = "onnxruntime",
        percentile: float = 99.99,
        memory_mib: float = 512.0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare the graph and measure; arguments and errors as for ``quantize_int8``."""
        check_choice("calibration method", method, METHODS)
        check_choice("quantised form", form, FORMS)
        self.form, self.method, self.feeds = form, method, list(feeds)
        self.float_bytes = Path(graph).stat().st_size
        self.model = prepare_graph(Path(graph))
        self.nodes = choose_nodes(self.model, form=form)
        types = {node.name: node.op_type for node in self.model.graph.node}
        self.layers = [name for name in self.nodes if types[name] in WEIGHTED]
        self._ranges: TensorsData = measure_ranges(
            self.model,
            _find_tensors(self.model, self.nodes),
            self.feeds,
            method=method,
            symmetric=form == "tensorrt",
            percentile=percentile,
            memory_mib=memory_mib,
            tell=tell,
        )

    def write(self, out: Path, *, keep_float: Sequence[str] = ()) -> QuantizeReport:
        """Write the quantised graph to ``out``.

        Args:
            out: file to write; it appears only when the graph is whole.
            keep_float: names of nodes that stay float, or patterns.

        Raises:
            ConfigError: a name in ``keep_float`` that no node has.
            ExportError: nothing is left to quantise, or the result is no valid graph.
        """
        chosen = choose_nodes(self.model, form=self.form, keep_float=keep_float)
        quantized = self.build(chosen)
        if self.form == "onnxruntime":
            heads = choose_heads(self.model, form=self.form, keep_float=keep_float)
            chosen += multiply_heads(quantized, heads)
            part_pixels(quantized)
            join_pixels(quantized)
            repeat_pixels(quantized)
        _finish(quantized, self.model)
        out, part = Path(out), Path(f"{out}.part")
        try:
            part.write_bytes(quantized.SerializeToString(deterministic=True))
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)
        every_layer = [node.name for node in self.model.graph.node if node.op_type in WEIGHTED]
        return QuantizeReport(
            form=self.form,
            method=self.method,
            calibration_images=len(self.feeds),
            quantized=tuple(chosen),
            kept=tuple(name for name in every_layer if name not in set(chosen)),
            float_bytes=self.float_bytes,
            bytes=out.stat().st_size,
        )

    def build(self, chosen: Sequence[str]) -> onnx.ModelProto:
        """The graph with the nodes of these names quantised, not checked."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        chosen_set = set(chosen)
        types = sorted({node.op_type for node in model.graph.node if node.name in chosen_set})
        signed = self.form == "tensorrt"
        options: dict[str, Any] = {"ActivationSymmetric": signed, "WeightSymmetric": True, "QuantizeBias": not signed}
        if signed:
            # TensorRT fuses a layer with what follows it; a scale between the two would keep them apart.
            options["OpTypesToExcludeOutputQuantization"] = types
        with quiet():
            quantizer = QDQQuantizer(
                model,
                True,  # per channel
                False,  # all 8 bits of a weight: integer dot products on current processors do not overflow
                QuantType.QInt8,
                QuantType.QInt8 if signed else QuantType.QUInt8,
                self._ranges,
                list(chosen),
                [],
                types,
                options,
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        fold_weights(quantized)
        return quantized


def quantize_int8(
    graph: Path,
    out: Path,
    *,
    feeds: Sequence[Feed],
    method: str = "minmax",
    form: str = "onnxruntime",
    keep_float: Sequence[str] = (),
    percentile: float = 99.99,
    memory_mib: float = 512.0,
    tell: Callable[[str], None] | None = None,
) -> QuantizeReport:
    """Write ``graph`` with 8 bit weights and activations to ``out``.

    Weights are signed, symmetric, one scale per channel, and stored as integers. Form "onnxruntime" has unsigned
    activations with a zero point (signed ones run 2 to 4 times slower there) and 32 bit biases; form "tensorrt" has
    signed ones around zero and float biases, the only kind that its parser takes. Which nodes: see ``choose_nodes`` and
    ``choose_heads``; "onnxruntime" has some of them in faster forms, see ``join_pixels`` and ``repeat_pixels``.

    Args:
        graph: a float ONNX file.
        out: file to write.
        feeds: inputs to measure ranges on; for image graphs ``build_feeds`` makes them. 8 or more varied ones.
        method: "minmax", or "entropy" and "percentile", which give up rare extremes for finer steps.
        form: one of FORMS.
        keep_float: names of nodes that stay float, or patterns such as "node_Conv_4*".
        percentile: share of the values kept, in percent; for method "percentile".
        memory_mib: feature maps held at once while measuring.
        tell: called with a line on the progress.

    Raises:
        ConfigError: unknown method, form or node, or no feeds.
        ExportError: the graph cannot be quantised.
    """
    quantizer = Quantizer(
        graph, feeds=feeds, method=method, form=form, percentile=percentile, memory_mib=memory_mib, tell=tell
    )
    return quantizer.write(out, keep_float=keep_float)


def _find_tensors(model: onnx.ModelProto, nodes: Sequence[str]) -> list[str]:
    """The activations that the nodes take and give."""
    chosen = set(nodes)
    activations = {
        value.name
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
        if value.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    } - {tensor.name for tensor in model.graph.initializer}
    taken = [name for node in model.graph.node if node.name in chosen for name in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(taken) if name in activations]


def _finish(quantized: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Free of notes and unused weights, checked, with the inputs and outputs of the float graph."""
    drop_foreign_domains(quantized)
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(quantized, full_check=True)
    for ours, theirs in ((quantized.graph.input, model.graph.input), (quantized.graph.output, model.graph.output)):
        if [value.SerializeToString() for value in ours] != [value.SerializeToString() for value in theirs]:
            raise ExportError(
                explain(
                    got="quantisation changed the graph's inputs or outputs",
                    need="the same as before",
                    hint="keep the last nodes in float with keep_float",
                )
            )
