"""Peak memory and time of predicting one large image with a bundle.

python benchmarks/big_image.py runs/latest/bundle --size 20000

The image is made of generated cells, has the bundle's channels and is written strip by strip, so that making it needs
little memory. The prediction runs in a process of its own whose peak is read from the operating system (Linux).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from cellvision.bundle import load_manifest
from cellvision.data.synthetic import SyntheticLiveDead

BLOCK_PX, ROWS = 1000, 50
PREDICT = """
import json, sys, time
from cellvision import Predictor

def peak_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

bundle, image, out, memory_mib = sys.argv[1:]
began, before = time.monotonic(), peak_mib()
cells = Predictor(bundle, memory_mib=int(memory_mib)).predict_to_folder(image, out)
print(json.dumps({"cells": len(cells), "tiles": cells.tiles, "seconds": round(time.monotonic() - began),
                  "peak_mib": round(peak_mib()), "before_mib": round(before)}))
"""


def main() -> None:
    """Make the image, predict it, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=20_000, help="edge in px, a multiple of 1000")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory the prediction may plan with")
    chosen = parser.parse_args()
    channels = len(load_manifest(chosen.bundle).channels)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "in" / "large.tif"
        image.parent.mkdir()
        write_image(image, size=chosen.size, channels=channels)
        arguments = [str(chosen.bundle), str(image), str(Path(folder) / "out"), str(chosen.memory_mib)]
        done = subprocess.run([sys.executable, "-c", PREDICT, *arguments], capture_output=True, text=True, check=True)
    found = {"size_px": chosen.size, "channels": channels, **json.loads(done.stdout.splitlines()[-1])}
    print(json.dumps(found))


def write_image(path: Path, *, size: int, channels: int) -> None:
    """A compressed uint16 TIFF (channels, size, size) of one generated block of cells, repeated."""
    field = SyntheticLiveDead(fields=1, height=BLOCK_PX, width=BLOCK_PX, cells=(400, 400)).sample(0)
    block = field.image[np.arange(channels) % len(field.image)]
    times = size // BLOCK_PX

    def iterate_strips() -> Iterator[bytes]:
        for plane in block:
            strips = (np.tile(plane[top : top + ROWS], (1, times)) for top in range(0, BLOCK_PX, ROWS))
            packed = [zlib.compress(strip.tobytes(), 1) for strip in strips]
            for _ in range(times):
                yield from packed

    tifffile.imwrite(
        path, iterate_strips(), shape=(channels, size, size), dtype="uint16", photometric="minisblack",
        planarconfig="separate" if channels > 1 else None, compression="zlib", rowsperstrip=ROWS, bigtiff=True,
        metadata={"axes": "CYX"} if channels > 1 else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
