"""How long the net and its forms take, side by side on one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cellvision.bundle import Detecting
from cellvision.export.onnx import open_eager
from cellvision.metrics.cost.timing import RunBatch, describe_machine, summarise, time_in_turns
from cellvision.models.base import SegNet
from cellvision.runtime.maps.tile_run import Progress

WARM_UPS = 2
REPEATS = 7
DOUBT = 0.05


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
        One row per number of threads and batch: "threads", "shape" [B, C, H, W], "ways", a Latency by name, and
        "least_ratios", `find_least_ratio` by name.
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
                first_ms = next(iter(times_ms.values()))
                rows.append(
                    {
                        "threads": number,
                        "shape": list(shape),
                        "ways": summarise(times_ms, shape=shape),
                        "least_ratios": {name: find_least_ratio(of_way, first_ms) for name, of_way in times_ms.items()},
                    }
                )
    finally:
        torch.set_num_threads(before)
    return rows


def find_least_ratio(times_ms: Sequence[float], first_ms: Sequence[float]) -> float:
    """At least so many times as long as the first form a form takes, however the machine was busy meanwhile.

    Lower end of the one-sided confidence interval, 1 - DOUBT, of the median over the rounds of its time over the first
    form's in the same round: that of the sign test, which is one of the measured ratios and needs no shape of their
    spread. Of 15 rounds it is the fourth smallest. Below five rounds nothing is that sure, and it is the smallest.

    Args:
        times_ms: of the form, one per round.
        first_ms: of the first form in the same rounds.

    Example:
        >>> find_least_ratio([9.0, 13.0, 12.0, 11.0, 30.0, 12.0, 12.0, 12.0], [10.0] * 8)
        1.1
    """
    ratios = sorted(np.divide(times_ms, first_ms).tolist())
    rounds, place, chance = len(ratios), 0, 0.5 ** len(ratios)
    # Chance that no more than `place` of the rounds lie below the true median.
    while chance + math.comb(rounds, place + 1) * 0.5**rounds <= DOUBT:
        place += 1
        chance += math.comb(rounds, place) * 0.5**rounds
    return float(ratios[place])


def find_ratio(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """Geometric mean over all rows of a form's time over the first's; NaN where one is not a number."""
    return _average([row["ways"][name].ratio for row in rows])


def find_sure_ratio(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """The same of `find_least_ratio`: so many times as long it takes at least."""
    return _average([row["least_ratios"][name] for row in rows])


def _average(ratios: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def _bind(run: RunBatch, batch: np.ndarray) -> Callable[[], object]:
    return lambda: run(batch)


def _summarise(values_ms: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values_ms)), 3),
        "lowest": round(min(values_ms), 3),
        "highest": round(max(values_ms), 3),
    }
