"""How long the same work takes in several ways, in turns, so that a busy machine slows all alike."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellvision.runtime.maps.tile_run import Progress

WARM_UPS = 2
RUNS = 20

RunBatch = Callable[[np.ndarray], object]
"""Runs a batch (B, C, H, W) through a net in one of its forms."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one way takes for one batch.

    Attributes:
        runs: number of timed runs.
        p50_ms, p95_ms: so long at most in half, in 95 %, of the runs.
        lowest_ms: of the fastest run.
        images_per_s, mpx_per_s: images and million pixels in a second, at ``p50_ms``.
        ratio: median over the rounds of its time over the first way's time in the same round; 1 for the first.
    """

    runs: int
    p50_ms: float
    p95_ms: float
    lowest_ms: float
    images_per_s: float
    mpx_per_s: float
    ratio: float


def time_in_turns(
    ways: Mapping[str, Callable[[], object]],
    *,
    runs: int = RUNS,
    warm_ups: int = WARM_UPS,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Times in ms of every way, one per round.

    In every round each way runs once, in an order that moves on by one from round to round: what follows a slow
    neighbour, or finds the processor hot, is each of them in turn.

    Args:
        ways: what to run, by name.
        runs: rounds that count, >= 1.
        warm_ups: rounds before them that do not.
        progress: told after each round: (rounds done, rounds in all).

    Example:
        >>> times = time_in_turns({"sum": lambda: sum(range(9)), "max": lambda: max(range(9))}, runs=3)
        >>> list(times), len(times["max"])
        (['sum', 'max'], 3)
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(warm_ups + runs):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            ways[name]()
            elapsed_ms = (time.perf_counter() - start) * 1e3
            if number >= warm_ups:
                times[name].append(elapsed_ms)
        if progress:
            progress(number + 1, warm_ups + runs)
    return times


def summarise(times_ms: Mapping[str, Sequence[float]], *, shape: tuple[int, ...]) -> dict[str, Latency]:
    """The times of `time_in_turns` in short.

    Args:
        times_ms: by name, the first being what others are compared with.
        shape: (B, C, H, W) of the batch.

    Example:
        >>> found = summarise({"slow": [10.0, 12.0, 11.0], "fast": [5.0, 4.0, 5.5]}, shape=(2, 1, 500, 1000))
        >>> found["fast"].ratio, found["fast"].images_per_s, found["fast"].mpx_per_s
        (0.5, 400.0, 200.0)
    """
    reference = np.asarray(next(iter(times_ms.values())))
    images, height, width = shape[0], shape[-2], shape[-1]
    found = {}
    for name, values in times_ms.items():
        p50_ms = float(np.median(values))
        found[name] = Latency(
            runs=len(values),
            p50_ms=_round(p50_ms),
            p95_ms=_round(float(np.percentile(values, 95))),
            lowest_ms=_round(min(values)),
            images_per_s=_round(1e3 * images / p50_ms),
            mpx_per_s=_round(images * height * width / (1e3 * p50_ms)),
            ratio=_round(float(np.median(np.asarray(values) / reference))),
        )
    return found


def describe_machine() -> dict[str, Any]:
    """What a time depends on: processor, cores this process may use, operating system."""
    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor_name() -> str:
    listing = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _round(value: float) -> float:
    """Four digits that mean something; more are noise in a file."""
    return value if value == 0 or not math.isfinite(value) else round(value, 3 - math.floor(math.log10(abs(value))))
