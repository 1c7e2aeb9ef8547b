"""How long nets take as they will be used, for searches that try many."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellvision.compression.prune.runs import REGIONS
from cellvision.export.onnx import INPUT_NAME, export_part, split_net
from cellvision.export.quantize.finishing import finish_graph
from cellvision.export.quantize.trained import to_integers
from cellvision.metrics.cost.timing import time_in_turns
from cellvision.models.base import SegNet
from cellvision.models.centermask2.model import CenterMask2
from cellvision.models.structure.fake_quant import is_rounding
from cellvision.runtime.graphs.onnx_graph import open_onnx_graph
from cellvision.runtime.run_settings import RunSettings

RUNS = 9
LEAST_MS = 500.0
"""How long a net is looked at: what takes a few ms is slower and faster for tenths of a second."""


def measure_graph_ms(
    net: SegNet, image: Tensor, cells: int | None = None, *, threads: int | None = None, runs: int | None = None
) -> float:
    """Median time in ms of one image through the net's graph in ONNX Runtime on this machine's processor.

    Args:
        net: not touched; in fp32, or in INT8 if it rounds.
        image: (1, C, H, W) raw counts.
        cells: see `open_graph`.
        threads: None for as many as PyTorch uses.
        runs: that count; None for as many as half a second holds, and RUNS at least.

    Raises:
        ExportError: the net has no graph.
    """
    ways = {"net": open_graph(net, image, threads=threads or torch.get_num_threads(), cells=cells)}
    if runs is None:
        (once_ms,) = time_in_turns(ways, runs=1)["net"]
        runs = max(RUNS, math.ceil(LEAST_MS / once_ms))
    return float(np.median(time_in_turns(ways, runs=runs)["net"]))


def open_graph(net: SegNet, image: Tensor, *, threads: int, cells: int | None = None) -> Callable[[], object]:
    """One run of an image through the net's graph each time it is called, in ONNX Runtime.

    An instance net draws the masks of its best boxes, whatever their scores: one that was not trained yet, or not yet
    again since it was pruned, finds few cells or many too many, and its time would say so.

    Args:
        net: not touched; in fp32, or if it rounds with the integers of its INT8 bundle.
        image: (1, C, H, W) raw counts.
        threads: of the processor.
        cells: of an instance net, so many masks and at least one; None for REGIONS.

    Raises:
        ExportError: the net has no graph.
    """
    rounds, detecting = is_rounding(net), net.detecting
    if detecting is not None:
        net = _take_every_box(net)
        detecting = replace(detecting, min_score=0.0, max_cells=REGIONS if cells is None else max(cells, 1))
    (part,) = split_net(to_integers(net) if rounds else net, detecting=detecting)
    batch = np.asarray(image.cpu(), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = export_part(part, Path(folder) / "graph.onnx")
        if rounds:
            finish_graph(path)
        graph = open_onnx_graph(path, RunSettings(threads=threads))
    return lambda: graph.run({INPUT_NAME: batch}, part.outputs)


def _take_every_box(net: SegNet) -> SegNet:
    """The net, whose candidates need no probability of their class."""
    if isinstance(net, CenterMask2):
        net = copy.deepcopy(net)
        proposing = net.detector.proposal_generator
        proposing.decoding = replace(proposing.decoding, score_threshold=0.0)
    return net
