"""The C++ runner beside the Python one: from cold start to written results, and peak memory, on one field.

python benchmarks/cpp_runner.py BUNDLE.. --image FIELD --runs 11

The field is the middle 520 x 704 px of the image, mirrored at its edges where it is smaller. Both programs (``make
cpp``; ``cellvision predict``) start anew for each run and take turns. Each writes labels, overlay and tables; the label
images and the tables of cells are compared. Time is from the start of the process to its end: on the clock, and of
processors, which a busy machine changes less. Memory is the most that the process held. With no tile size given each
runner chooses its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cellvision.data.images import read_image

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "build" / "cpp" / "cellvision_predict"
SIZE = (520, 704)  # px
Row = dict[str, float]
# Started by a process as large as this one, a small program would count the memory of its parent as its own.
_LAUNCHER = """
import json, os, sys, time
began = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, used = os.wait4(process, 0)
print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime,
                  "peak_mib": used.ru_maxrss / 1024}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> None:
    """Measure each bundle with both programs and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--image", type=Path, required=True, help="of the kind that the bundles are for")
    parser.add_argument("--runs", type=int, default=11, help="of each program that count; one before warms the disk")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tile-px", type=int, help="of both; left out: each chooses")
    chosen = parser.parse_args()
    if not RUNNER.is_file():
        parser.error(f"{RUNNER} is not built; try: make cpp")
    options = ["--threads", str(chosen.threads)]
    options += [] if chosen.tile_px is None else ["--tile-px", str(chosen.tile_px)]
    print(f"load {os.getloadavg()[0]:.1f}, {chosen.threads} threads, {chosen.runs} runs\n")
    print("| bundle | program | seconds, p50 | processor seconds, p50 | peak MiB | time | memory | results |")
    print("|---|---|---|---|---|---|---|---|")
    record = []
    with tempfile.TemporaryDirectory() as name:
        field = Path(name) / "field.tif"
        cut_field(chosen.image, field)
        for bundle in chosen.bundles:
            found = compare_programs(["--bundle", str(bundle), str(field), *options], chosen.runs)
            record.append({"bundle": str(bundle), **found})
            print_rows(bundle, found)
    print(json.dumps(record))


def cut_field(image: Path, field: Path) -> None:
    """The middle of an image as a TIFF of SIZE."""
    pixels, info = read_image(image)
    for axis, length in enumerate(SIZE, start=1):
        have = pixels.shape[axis]
        start = max(0, (have - length) // 2)
        pixels = pixels.take(range(start, start + min(have, length)), axis=axis)
        missing = length - pixels.shape[axis]
        pads = [(0, 0)] * 3
        pads[axis] = (missing // 2, missing - missing // 2)
        pixels = np.pad(pixels, pads, mode="symmetric")
    metadata: dict[str, Any] = {"axes": "CYX"}
    if info.channel_names:
        metadata["Channel"] = {"Name": list(info.channel_names)}
    tifffile.imwrite(field, pixels, ome=True, photometric="minisblack", metadata=metadata)


def compare_programs(arguments: list[str], runs: int) -> dict[str, Any]:
    """Medians of both programs, and whether their results are the same."""
    programs = {
        "C++": [str(RUNNER), *arguments],
        "Python": [sys.executable, "-m", "cellvision", "predict", *arguments],
    }
    rows: dict[str, list[Row]] = {name: [] for name in programs}
    results: dict[str, tuple[bytes, bytes]] = {}
    for _ in range(runs + 1):
        for name, command in programs.items():
            with tempfile.TemporaryDirectory() as folder:
                rows[name].append(run([*command, "--out", folder]))
                labels = tifffile.imread(Path(folder) / "field_labels.tif")
                results[name] = labels.tobytes(), (Path(folder) / "cells.csv").read_bytes()
    medians = {
        name: {key: statistics.median(row[key] for row in some[1:]) for key in some[0]} for name, some in rows.items()
    }
    return {**medians, "same": results["C++"] == results["Python"]}


def run(command: list[str]) -> Row:
    """What one run of a program took."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, check=False, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    measured: Row = json.loads(done.stdout)
    return measured


def print_rows(bundle: Path, found: dict[str, Any]) -> None:
    """A line for each program; those of C++ with its share of Python's time and memory."""
    cpp, python = found["C++"], found["Python"]
    shares = f"{cpp['wall_s'] / python['wall_s']:.0%} | {cpp['peak_mib'] / python['peak_mib']:.0%}"
    same = "same" if found["same"] else "DIFFERENT"
    for name, row, rest in (("C++", cpp, f"{shares} | {same}"), ("Python", python, " |  | ")):
        figures = f"{row['wall_s']:.2f} | {row['cpu_s']:.2f} | {row['peak_mib']:.0f}"
        print(f"| {bundle.name} | {name} | {figures} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
