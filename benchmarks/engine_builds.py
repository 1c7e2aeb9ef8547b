"""How long engines of trained nets take to build, and how large they are: fp32, fp16 and int8, with TensorRT-RTX.

python benchmarks/engine_builds.py U-Net=CKPT 'CenterMask2 lite=CKPT' --image FIELD

TensorRT-RTX builds without a GPU and leaves the choice of kernels to the GPU that will run an engine; nothing is run
here. Engines take batches of 1 to 8 images of 32 to 1,024 px, the usual ones of ``export.py +trt=...``. Ranges of int8
are those of one field: they have no part in time or size. Prints the rows of a table as they come: seconds of the wall
clock and of the processor (all threads), and bytes of the ONNX graph and of the engine. The wall clock sees what else
the machine does; its load is printed before and after.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellvision.data.images import read_image
from cellvision.export.half import to_half
from cellvision.export.onnx import INPUT_NAME, export_part, split_net
from cellvision.export.parity.comparison import cut, open_graph
from cellvision.export.quantize.static import quantize_int8
from cellvision.export.tensorrt.builder import build_engine
from cellvision.export.tensorrt.engines import plan_shapes
from cellvision.export.tensorrt.options import TensorrtOptions
from cellvision.metrics.cost.timing import describe_machine
from cellvision.models.base import SegNet
from cellvision.runtime.engines.library import import_backend
from cellvision.training.checkpoint import load_net

PRECISIONS = ("fp32", "fp16", "int8")
FIELD_PX = 256  # of the field that ranges of int8 are found in


def main() -> None:
    """Print a row per net, precision and graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", metavar="NAME=CKPT", help="checkpoints of train.py, each with a name")
    parser.add_argument("--image", type=Path, required=True, help="a field with the channels of the nets")
    parser.add_argument("--max-cells", type=int, help="of instance nets, places for cells")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    chosen = parser.parse_args()
    print(f"TensorRT-RTX {import_backend('tensorrt_rtx').__version__}, {describe_machine()}, {describe_load()}\n")
    print("| net | engine | precision | wall, s | processor, s | ONNX, MB | engine, MB |")
    print("|---|---|---|---|---|---|---|")
    for name, _, checkpoint in (pair.partition("=") for pair in chosen.nets):
        net, _ = load_net(Path(checkpoint))
        image = cut(np.asarray(read_image(chosen.image)[0])[: net.spec.in_channels], FIELD_PX, FIELD_PX)
        for precision in chosen.precisions:
            with tempfile.TemporaryDirectory() as folder:
                for role, path in write_graphs(net, precision, image, Path(folder), max_cells=chosen.max_cells).items():
                    print(f"| {name} | {role} | {precision} | {build(net, role, path, precision)} |", flush=True)
    print(f"\n{describe_load()}")


def write_graphs(
    net: SegNet, precision: str, image: np.ndarray, folder: Path, *, max_cells: int | None
) -> dict[str, Path]:
    """ONNX files by role, as `export.py +trt=PRECISION` makes them but for the ranges of int8."""
    detecting = net.detecting and replace(net.detecting, max_cells=max_cells or net.detecting.max_cells)
    parts = split_net(to_half(net) if precision == "fp16" else net, detecting=detecting, parted=detecting is not None)
    files = {part.role: export_part(part, folder / f"{part.role}.onnx") for part in parts}
    if precision != "int8":
        return files
    rounded = {role: folder / f"{role}_int8.onnx" for role in files}
    feed = {INPUT_NAME: image[None].astype(np.float32)}
    for part in parts:
        known = {name: value.numpy() for name, value in part.inputs.items()} | feed
        feed = {name: known[name] for name in part.inputs}
        quantize_int8(files[part.role], rounded[part.role], feeds=[feed], form="tensorrt")
        results = open_graph(files[part.role]).run(None, feed)
        feed = {name: value for name, value in zip(part.outputs, results, strict=True) if name.startswith("map_")}
    return rounded


def build(net: SegNet, role: str, path: Path, precision: str) -> str:
    """The figures of a row."""
    calibration = "minmax" if precision == "int8" else None
    options = TensorrtOptions(backend="tensorrt_rtx", precision=precision, calibration=calibration)
    engine = path.with_suffix(".engine")
    wall, processor = time.perf_counter(), time.process_time()
    build_engine(path, engine, options, shapes=plan_shapes(net, role, options))
    seconds = (time.perf_counter() - wall, time.process_time() - processor)
    return " | ".join(
        [*(f"{value:.1f}" for value in seconds), *(f"{file.stat().st_size / 1e6:.2f}" for file in (path, engine))]
    )


def describe_load() -> str:
    """How busy the machine is."""
    return f"load of the last 1, 5 and 15 minutes {', '.join(f'{load:.1f}' for load in os.getloadavg())}"


if __name__ == "__main__":
    main()
