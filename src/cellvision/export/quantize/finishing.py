"""The graph of a net that learned to round, in the forms that ONNX Runtime computes fastest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from cellvision.export.onnx import export_part, split_net
from cellvision.export.quantize.biases import round_biases
from cellvision.export.quantize.faster import join_pixels, repeat_pixels
from cellvision.export.quantize.nodes import WEIGHTED
from cellvision.export.quantize.preparing import pool_means
from cellvision.export.quantize.rewriting import Rewriting
from cellvision.export.quantize.trained import to_integers
from cellvision.export.quantize.transposed import part_pixels
from cellvision.models.base import SegNet


def export_integers(net: SegNet, files: Mapping[str, Path], *, form: str = "onnxruntime", **how: Any) -> dict[str, Any]:
    """What was made of a net that rounds, for a manifest; its graphs are written with the integers of its training.

    Args:
        net: that rounds; it is not touched.
        files: where each part goes, by its role.
        form: "onnxruntime" or "tensorrt"; see `to_integers`.
        **how: see `split_net`.

    Raises:
        ExportError: a graph cannot be made.
    """
    counts = {}
    for part in split_net(to_integers(net, form=form), **how):
        path = export_part(part, files[part.role])
        if form == "onnxruntime":
            finish_graph(path)
        counts[part.role] = count_layers(path)
    return {"precision": "int8", "rounding": "as in its run", "form": form, "graphs": counts}


def finish_graph(path: Path) -> None:
    """Rewrite a graph of ``to_integers`` for ONNX Runtime: the same integers, but for biases; see ``round_biases``."""
    model = onnx.load(path)
    pool_means(model)
    part_pixels(model)
    round_biases(model)
    join_pixels(model)
    repeat_pixels(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def count_layers(path: Path) -> dict[str, Any]:
    """How many layers of a graph compute on integers ("integer") and how many on floats ("float"), and its bytes."""
    model = onnx.load(path)
    rewriting = Rewriting(model)
    kinds: Counter[str] = Counter(integer=0, float=0)
    for node in model.graph.node:
        if node.op_type not in WEIGHTED:
            continue
        if all(rewriting.find_integers(name) for name in node.input[:2]):
            kinds["integer"] += 1
        elif node.input[1] in rewriting.constants or rewriting.find_integers(node.input[1]):
            kinds["float"] += 1
    return {**kinds, "bytes": path.stat().st_size}
