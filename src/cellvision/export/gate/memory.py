"""How much memory a net takes in PyTorch, in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from cellvision.bundle import Detecting
from cellvision.metrics.cost.peak_memory import PeakMemory, draw_counts, print_peak, run_measurement


def measure_net_memory(
    checkpoint: Path, *, shape: tuple[int, int, int], threads: int, detecting: Detecting | None = None
) -> PeakMemory | None:
    """Memory of loading a checkpoint's net and running it twice; None where the system does not tell (not on Linux).

    Args:
        checkpoint: of the net.
        shape: (B, H, W) of the batch, which is of random counts.
        threads: of the processor.
        detecting: of the bundles that are compared with it.

    Raises:
        BundleError: the process failed; the text holds its last words.
    """
    chosen = asdict(detecting) if detecting else None
    given = {"checkpoint": str(checkpoint), "shape": list(shape), "threads": threads, "detecting": chosen}
    return run_measurement([sys.executable, "-m", __name__, json.dumps(given)], what=str(checkpoint))


def _main() -> None:
    given = json.loads(sys.argv[1])
    from cellvision.export.gate.latency import open_net_run
    from cellvision.training.checkpoint import load_net

    images, height, width = given["shape"]
    torch.set_num_threads(given["threads"])

    def work() -> None:
        net, _ = load_net(Path(given["checkpoint"]))
        run = open_net_run(net, detecting=Detecting(**given["detecting"]) if given["detecting"] else None)
        for _ in range(2):
            run(draw_counts("float32", (images, net.spec.in_channels, height, width)))

    print_peak(work)


if __name__ == "__main__":
    _main()
