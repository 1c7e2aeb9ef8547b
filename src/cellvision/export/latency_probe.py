"""How long nets take as they will be used, for searches that try many."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellvision.bundle import Detecting
from cellvision.export.onnx import INPUT_NAME, export_part, split_net
from cellvision.export.quantize.finishing import finish_graph
from cellvision.export.quantize.trained import to_integers
from cellvision.metrics.cost.timing import time_in_turns
from cellvision.models.base import SegNet
from cellvision.models.structure.fake_quant import is_rounding
from cellvision.runtime.graphs.onnx_graph import open_onnx_graph
from cellvision.runtime.run_settings import RunSettings

RUNS = 9


def measure_graph_ms(net: SegNet, image: Tensor, *, threads: int | None = None, runs: int = RUNS) -> float:
    """Median time in ms of one image through the net's graph in ONNX Runtime on this machine's processor.

    An instance net draws the masks of what it finds in the image, so that it should be one with cells.

    Args:
        net: not touched; in fp32, or in INT8 if it rounds.
        image: (1, C, H, W) raw counts.
        threads: None for as many as PyTorch uses.
        runs: that count.

    Raises:
        ExportError: the net has no graph.
    """
    way = open_graph(net, image, threads=threads or torch.get_num_threads(), detecting=net.detecting)
    return float(np.median(time_in_turns({"net": way}, runs=runs)["net"]))


def open_graph(net: SegNet, image: Tensor, *, threads: int, detecting: Detecting | None = None) -> Callable[[], object]:
    """One run of an image through the net's graph each time it is called, in ONNX Runtime.

    Args:
        net: not touched; in fp32, or if it rounds with the integers of its INT8 bundle.
        image: (1, C, H, W) raw counts.
        threads: of the processor.
        detecting: how candidates become detections; None for nets that say something of every pixel.

    Raises:
        ExportError: the net has no graph.
    """
    rounds = is_rounding(net)
    (part,) = split_net(to_integers(net) if rounds else net, detecting=detecting)
    batch = np.asarray(image.cpu(), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = export_part(part, Path(folder) / "graph.onnx")
        if rounds:
            finish_graph(path)
        graph = open_onnx_graph(path, RunSettings(threads=threads))
    return lambda: graph.run({INPUT_NAME: batch}, part.outputs)
