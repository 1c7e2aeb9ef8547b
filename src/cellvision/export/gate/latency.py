"""How long the net and its forms take, side by side on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cellvision.bundle import Detecting
from cellvision.export.onnx import open_eager
from cellvision.metrics.cost.timing import Latency, RunBatch, describe_machine, summarise, time_in_turns
from cellvision.models.base import SegNet
from cellvision.runtime.maps.tile_run import Progress

WARM_UPS = 2
REPEATS = 7


def measure_latency(
    net: SegNet, run: RunBatch, image: np.ndarray, *, detecting: Detecting | None = None
) -> dict[str, Any]:
    """Median times in ms of one image through the net in PyTorch and through its graph in ONNX Runtime.

    Both run in this process on the CPU with the same number of threads, taking turns, so that a busy machine
    slows both alike.

    Args:
        net: what was exported.
        run: takes a (B, C, H, W) batch through its graphs.
        image: (C, H, W) raw counts in the graph's input dtype.
        detecting: of the graph.

    Returns:
        "size" [C, H, W], "repeats", "threads", "pytorch_ms" and "onnxruntime_ms", each with "median", "lowest" and
        "highest", and "machine".
    """
    threads = torch.get_num_threads()
    batch = image[None]
    ways: dict[str, Callable[[], object]] = {
        "pytorch_ms": _bind(open_net_run(net, detecting=detecting), batch),
        "onnxruntime_ms": _bind(run, batch),
    }
    times_ms = time_in_turns(ways, runs=REPEATS, warm_ups=WARM_UPS)
    return {
        "size": list(image.shape),
        "repeats": REPEATS,
        "threads": threads,
        **{name: _summarise(values) for name, values in times_ms.items()},
        "machine": describe_machine(),
    }


def open_net_run(net: SegNet, *, detecting: Detecting | None = None) -> RunBatch:
    """What runs a batch (B, C, H, W) of counts through the net in PyTorch; see `open_eager`."""
    run = open_eager(net, detecting=detecting)
    return lambda batch: run(torch.from_numpy(batch))


def compare_speed(
    open_way: Mapping[str, Callable[[int], RunBatch]],
    batches: Mapping[str, Sequence[np.ndarray]],
    *,
    threads: Sequence[int],
    runs: int,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Times of several forms of a net, in turns, for every batch and number of threads.

    PyTorch's number of threads is set too, and put back.

    Args:
        open_way: by name, what opens a form for a number of threads; the first is what others are compared with.
        batches: by name, its batches (B, C, H, W) in its own input dtype, of the same shapes for all.
        threads: of the processor, each >= 1.
        runs: that count.
        progress: told after each round of one batch: (rounds done, rounds in all).

    Returns:
        One row per number of threads and batch: "threads", "shape" [B, C, H, W], and "ways", a Latency by name.
    """
    before, rows = torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            opened = {name: start(number) for name, start in open_way.items()}
            for of_all in zip(*(batches[name] for name in opened), strict=True):
                bound = {name: _bind(opened[name], batch) for name, batch in zip(opened, of_all, strict=True)}
                times_ms = time_in_turns(bound, runs=runs, progress=progress)
                shape = of_all[0].shape
                rows.append({"threads": number, "shape": list(shape), "ways": summarise(times_ms, shape=shape)})
    finally:
        torch.set_num_threads(before)
    return rows


def find_ratio(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Geometric mean over all rows of a form's time over the first's; NaN where one is not a number."""
    ratios: list[float] = [found.ratio for row in rows if isinstance(found := row["ways"][name], Latency)]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")


def _bind(run: RunBatch, batch: np.ndarray) -> Callable[[], object]:
    return lambda: run(batch)


def _summarise(values_ms: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values_ms)), 3),
        "lowest": round(min(values_ms), 3),
        "highest": round(max(values_ms), 3),
    }
