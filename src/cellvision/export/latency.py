"""How long the net and its graph take, side by side on one machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellvision.export.onnx import INPUT_NAME, to_inference
from cellvision.export.parity import open_graph
from cellvision.models.base import SegNet

WARM_UPS = 2
REPEATS = 7


def measure_latency(net: SegNet, graph: Path, image: np.ndarray) -> dict[str, Any]:
    """Median times in ms of one image through the net in PyTorch and through its graph in ONNX Runtime.

    Both run in this process on the CPU with the same number of threads, taking turns, so that a busy machine
    slows both alike.

    Args:
        net: what was exported.
        graph: its ONNX file.
        image: (C, H, W) raw counts in the graph's input dtype.

    Returns:
        "size" [C, H, W], "repeats", "threads", "pytorch_ms" and "onnxruntime_ms", each with "median", "lowest" and
        "highest", and "machine".
    """
    threads = torch.get_num_threads()
    reference, session = to_inference(net), open_graph(graph, threads=threads)
    batch = image[None]
    tensor = torch.from_numpy(batch)
    sides = {
        "pytorch_ms": lambda: reference.forward(tensor),
        "onnxruntime_ms": lambda: session.run(None, {INPUT_NAME: batch}),
    }
    times_ms: dict[str, list[float]] = {name: [] for name in sides}
    with torch.inference_mode():
        for round_number in range(WARM_UPS + REPEATS):
            for name, run in sides.items():
                elapsed_ms = _time_ms(run)
                if round_number >= WARM_UPS:
                    times_ms[name].append(elapsed_ms)
    return {
        "size": list(image.shape),
        "repeats": REPEATS,
        "threads": threads,
        **{name: _summary(values) for name, values in times_ms.items()},
        "machine": describe_machine(),
    }


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


def _time_ms(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _summary(values_ms: list[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values_ms)), 3),
        "lowest": round(min(values_ms), 3),
        "highest": round(max(values_ms), 3),
    }
