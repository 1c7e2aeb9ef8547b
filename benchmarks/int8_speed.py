"""Time of a net in INT8 against fp32 and against eager PyTorch, on the CPU, in turns.

python benchmarks/int8_speed.py CKPT FP32_BUNDLE INT8_BUNDLE --image FILE --size 520x704 --threads 1 2

From the batch of counts to what the graph gives, without the splitting into cells. The image is repeated or cut to the
size; CenterMask2 takes time by the number of cells, so give it a real one. Each line has medians of the wall clock and
of the processor time of this process, and their ratios to the fp32 bundle in the same round. The processor time hardly
sees what else the machine does. Makes the bundles with ``export.py bundle=DIR``, without and with ``precision=int8``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cellvision.bundle import load_manifest
from cellvision.commands.benchmarking.inputs import cut_middle
from cellvision.data.images import read_image
from cellvision.export.gate.latency import open_net_run
from cellvision.export.parity.comparison import to_dtype
from cellvision.metrics.cost.timing import describe_machine, time_in_turns
from cellvision.runtime.session import open_session
from cellvision.training.checkpoint import load_net


def main() -> None:
    """Print a line per number of threads and form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("fp32", type=Path, help="bundle")
    parser.add_argument("int8", type=Path, help="bundle")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--size", default="520x704", help="height x width, px")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=15, help="of each that count")
    chosen = parser.parse_args()
    bundles = {"fp32": chosen.fp32, "int8": chosen.int8}
    manifests = {name: load_manifest(folder) for name, folder in bundles.items()}
    height, width = map(int, chosen.size.split("x"))
    image = cut_middle(read_image(chosen.image)[0], height, width)[None]
    net, _ = load_net(chosen.checkpoint)
    eager = open_net_run(net, detecting=manifests["fp32"].detecting)
    print(describe_machine(), f"{height} x {width} px")
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        ways = {"pytorch": bind(eager, to_dtype(image, "float32"))}
        for name, folder in bundles.items():
            run = open_session(folder, threads=threads).run_batch
            ways[name] = bind(run, to_dtype(image, manifests[name].input_dtype))
        print_times(*time_ways(ways, chosen.runs), threads)
    sizes = {name: sum((bundles[name] / one.file).stat().st_size for one in manifests[name].graphs) for name in bundles}
    print(", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()), end="; ")
    print(f"int8 is {sizes['int8'] / sizes['fp32']:.3f} of fp32")


def bind(run: Callable[[np.ndarray], object], batch: np.ndarray) -> Callable[[], object]:
    """``run`` of this batch."""
    return lambda: run(batch)


def time_ways(
    ways: dict[str, Callable[[], object]], runs: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor times in ms of every way, one per round."""
    processor: dict[str, list[float]] = {name: [] for name in ways}

    def clock(name: str) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time()
            ways[name]()
            processor[name].append((time.process_time() - start) * 1e3)

        return run

    wall = time_in_turns({name: clock(name) for name in ways}, runs=runs)
    return wall, {name: values[-runs:] for name, values in processor.items()}


def print_times(wall: dict[str, list[float]], processor: dict[str, list[float]], threads: int) -> None:
    """A line per form; how many times as fast as fp32 it is, by both clocks."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{threads} threads, load {load}")
    for name in wall:
        line = f"  {name:8s}"
        for clock, times in (("wall", wall), ("processor", processor)):
            faster = np.median(np.divide(times["fp32"], times[name]))
            line += f"  {clock} {np.median(times[name]):8.1f} ms, {faster:5.2f} x as fast as fp32"
        print(line, flush=True)


if __name__ == "__main__":
    main()
