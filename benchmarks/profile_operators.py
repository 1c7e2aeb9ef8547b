"""Which operators take the time of a bundle's first graph, by ONNX Runtime's own profile.

python benchmarks/profile_operators.py BUNDLE --image FIELD --size-px 512

One line per kind of operator: its median milliseconds a run, and its share of all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime

from cellvision.bundle import load_manifest
from cellvision.data.images import read_image
from cellvision.export.onnx import INPUT_NAME
from cellvision.export.parity.comparison import cut

WARM_UPS = 3


def main() -> None:
    """Run the graph and sum up what its nodes took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--size-px", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    chosen = parser.parse_args()
    manifest = load_manifest(chosen.bundle)
    pixels = np.asarray(read_image(chosen.image)[0])[: len(manifest.channels)]
    image = cut(pixels, chosen.size_px, chosen.size_px).astype(np.float32)[None]
    times_ms = profile(chosen.bundle / manifest.graphs[0].file, image, threads=chosen.threads, runs=chosen.runs)
    total = sum(times_ms.values())
    for kind, each in sorted(times_ms.items(), key=lambda pair: -pair[1]):
        print(f"{kind:24} {each:8.2f} ms {each / total:6.1%}")
    print(f"{'all':24} {total:8.2f} ms")


def profile(graph: Path, image: np.ndarray, *, threads: int, runs: int) -> dict[str, float]:
    """{kind of operator: median ms of a run}, of so many runs on an image (1, C, H, W) float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = threads, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        for _ in range(WARM_UPS + runs):
            session.run(None, {INPUT_NAME: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: dict[str, list[float]] = defaultdict(list)  # of each node, one per run
    kinds = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["name"]].append(event["dur"] / 1000)
            kinds[event["name"]] = event["args"]["op_name"]
    sums: dict[str, float] = defaultdict(float)
    for node, each in taken.items():
        sums[kinds[node]] += float(np.median(each[WARM_UPS:]))
    return dict(sums)


if __name__ == "__main__":
    main()
