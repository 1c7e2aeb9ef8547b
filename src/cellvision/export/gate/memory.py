"""How much memory a net takes in PyTorch, in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cellvision.bundle import Detecting
from cellvision.metrics.cost.peak_memory import PeakMemory, hand_over, print_peak, run_measurement


def measure_net_memory(
    checkpoint: Path, *, batch: np.ndarray, threads: int, rounds: bool = False, detecting: Detecting | None = None
) -> PeakMemory | None:
    """Memory of loading a checkpoint's net and running it twice; None where the system does not tell (not on Linux).

    Args:
        checkpoint: of the net.
        batch: (B, C, H, W) counts.
        threads: of the processor.
        rounds: whether a net that has learned to round does so.
        detecting: of the bundles that are compared with it.

    Raises:
        BundleError: the process failed; the text holds its last words.
    """
    chosen = asdict(detecting) if detecting else None
    with hand_over(batch) as file:
        given = {"checkpoint": str(checkpoint), "batch": file, "threads": threads, "rounds": rounds}
        words = json.dumps(given | {"detecting": chosen})
        return run_measurement([sys.executable, "-m", __name__, words], what=str(checkpoint))


def _main() -> None:
    given = json.loads(sys.argv[1])
    from cellvision.export.gate.latency import open_net_run
    from cellvision.export.quantize.trained import to_float
    from cellvision.training.checkpoint import load_net

    torch.set_num_threads(given["threads"])

    def work() -> None:
        net, _ = load_net(Path(given["checkpoint"]))
        detecting = Detecting(**given["detecting"]) if given["detecting"] else None
        run = open_net_run(net if given["rounds"] else to_float(net), detecting=detecting)
        batch = np.load(given["batch"])
        for _ in range(2):
            run(batch)

    print_peak(work)


if __name__ == "__main__":
    _main()
