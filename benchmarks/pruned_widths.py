"""What widths cost: one net pruned to the same multiplications, with its widths as they fall and as multiples.

python benchmarks/pruned_widths.py CKPT --image FIELD --macs 0.5 --round-to 1 8 16

Nothing is trained, for times depend on widths alone. Each net is timed in fp32 and in 8 bits in ONNX Runtime, all in
turns; each line has the median and how many times as fast as the whole net in fp32, the median over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.plan import plan_rounding
from cellvision.data.images import read_image
from cellvision.export.onnx import INPUT_NAME, export_part, split_net
from cellvision.export.parity.comparison import cut
from cellvision.export.quantize.finishing import export_integers
from cellvision.metrics.cost.timing import time_in_turns
from cellvision.models.base import SegNet
from cellvision.models.structure.fake_quant import find_fake_quants, set_fake_quant, set_phase
from cellvision.runtime.graphs.onnx_graph import open_onnx_graph
from cellvision.runtime.run_settings import RunSettings
from cellvision.training.checkpoint import load_net


def main() -> None:
    """Prune, export and time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    chosen = parser.parse_args()
    net, _ = load_net(chosen.checkpoint)
    pixels = np.asarray(read_image(chosen.image)[0])[: net.spec.in_channels]
    image = torch.from_numpy(cut(pixels, chosen.size_px, chosen.size_px).astype(np.float32))[None]
    nets = {"whole": net}
    for multiple in chosen.round_to:
        pruned = copy.deepcopy(net)
        step = Pruner(pruned, image, PruneOptions(macs=chosen.macs, round_to=multiple, tolerance=0.2)).step()
        nets[f"multiples of {multiple}, {step.macs:.0%} of the MACs"] = pruned
    with tempfile.TemporaryDirectory() as folder:
        ways = {}
        for number, (name, each) in enumerate(nets.items()):
            ways |= open_forms(name, each, image, Path(folder) / str(number), threads=chosen.threads)
        times_ms = {name: np.array(values) for name, values in time_in_turns(ways, runs=chosen.runs).items()}
    first = next(iter(times_ms.values()))
    for name, values in times_ms.items():
        print(f"{name:44} {np.median(values):8.1f} ms {np.median(first / values):6.2f} times as fast")


def open_forms(
    name: str, net: SegNet, image: Tensor, prefix: Path, *, threads: int
) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """What runs a net in fp32 and in 8 bits."""
    (part,) = split_net(net, detecting=net.detecting)
    files = {"fp32": export_part(part, Path(f"{prefix}_fp32.onnx")), "int8": Path(f"{prefix}_int8.onnx")}
    export_integers(round_net(net, image), {part.role: files["int8"]}, detecting=net.detecting)
    ways = {}
    for form, path in files.items():
        graph = open_onnx_graph(path, RunSettings(threads=threads))
        ways[f"{name}, {form}"] = partial(graph.run, {INPUT_NAME: image.numpy()}, part.outputs)
    return ways


@torch.no_grad()
def round_net(net: SegNet, image: Tensor) -> SegNet:
    """A copy that rounds, with the ranges of one image."""
    copied = copy.deepcopy(net).eval()
    set_fake_quant(copied, plan_rounding(copied, lambda: run_layers(copied, image)))
    set_phase(copied, observing=True, rounding=False)
    for quant in find_fake_quants(copied):
        quant.train()
    run_layers(copied, image)
    set_phase(copied, observing=False, rounding=True)
    return copied.eval()


if __name__ == "__main__":
    main()
