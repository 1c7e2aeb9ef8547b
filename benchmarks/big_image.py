"""One large image of known cells through a bundle: peak memory, time, and whether the seams between tiles show.

python benchmarks/big_image.py runs/latest/bundle
python benchmarks/big_image.py BUNDLE --coco PATH/instances_val.json --images PATH/images --pattern "fluor_*"
python benchmarks/big_image.py BUNDLE --size 3000 --cells 4500 --untiled

The image is made of cells cut out of a data set, those of the bundle's net at best, and put at random places: generated
live and dead cells, or real ones of COCO annotations (see big_image_cells.py). The prediction runs in a process of its
own whose peak is read from the operating system (Linux). Truth and prediction are compared cell by cell (see
big_image_seams.py), for all cells, for those that a border between tiles goes through, for those on the border of what
a tile is shown, and, to tell what the tiles do from what the net does, for those on the same lines moved to elsewhere:

missed    no prediction has an IoU above 0.5 with the cell
extra     a prediction of which the same is true
doubled   two predictions or more lie mostly in the cell
cut       a prediction in the cell ends within 2 px of the line, and the cell goes on beyond it

In brackets are errors per 1000 cells; of moved lines, their mean over all ways to move them and how much one of them
scatters. --other-tile-px predicts once more in other tiles, and counts the errors on lines of either that are no border
in the other, in both: the same cells with and without a border through them. --untiled takes the result without tiles
for the truth as well. Prints a table, and writes it with the images and pictures of borders to the folder --out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from big_image_cells import build_scene, write_scene
from big_image_pictures import choose_places, save_crops, save_overview
from big_image_seams import (
    ERRORS,
    Lines,
    Verdicts,
    average,
    compute_rate,
    count_errors,
    find_lines,
    judge,
    keep_away,
    measure_overlaps,
    shift_lines,
)

from cellvision.bundle import Manifest, load_manifest
from cellvision.data.coco import CocoDataset
from cellvision.data.dataset import CellDataset
from cellvision.data.synthetic import SyntheticLiveDead

PREDICT = """
import json, sys, time
from pathlib import Path

from cellvision import Predictor
from cellvision.data.images import read_info
from cellvision.runtime.tiles.budget import measure_net
from cellvision.runtime.tiles.planner import JobPlanner

def peak_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

bundle, image, out, given = sys.argv[1:]
given = json.loads(given)
threads = given.pop("threads")
before, began = peak_mib(), time.monotonic()
predictor = Predictor(bundle, threads=threads, **given)
opened = time.monotonic()
def tell(done, tiles):
    if done % 20 == 0:
        print(f"{done}/{tiles} tiles, {time.monotonic() - opened:.0f} s", file=sys.stderr, flush=True)

cells = predictor.predict_to_folder(image, out, progress=tell)
seconds = time.monotonic() - opened
peak, info = peak_mib(), read_info(Path(image))
job = JobPlanner(predictor.session, measure_net(predictor.session), **given).plan(
    lambda top, bottom: None, name="image", shape=info.shape, dtype=info.dtype, channel_names=info.channel_names,
    intensity_scale=None, pixel_size_um=None, progress=None, overlay=True)
assert job.tiles == cells.tiles
print(json.dumps({"found": len(cells), "tiles": cells.tiles, "tile_px": job.tile_px, "overlap_px": job.overlap_px,
    "opening_s": round(opened - began, 1), "predicting_s": round(seconds, 1),
    "processor_s": round(time.process_time(), 1), "peak_mib": round(peak), "before_mib": round(before)}))
"""
WIDTHS = dict.fromkeys(("cells", "F1", "recall", "precision", "IoU"), 10) | dict.fromkeys(ERRORS, 16)


def main() -> None:
    """Make the image, predict it, compare it with the truth, draw pictures."""
    chosen = parse_arguments()
    manifest = load_manifest(chosen.bundle)
    chosen.out.mkdir(parents=True, exist_ok=True)
    image, truth = chosen.out / "in" / "large.tif", chosen.out / "truth.tif"
    image.parent.mkdir(exist_ok=True)
    channels = [channel.name for channel in manifest.channels]
    scene = build_scene(open_fields(chosen, manifest), channels, size=chosen.size, cells=chosen.cells, seed=chosen.seed)
    write_scene(scene, image, truth)
    del scene
    report = {"size_px": chosen.size, "channels": channels}
    report["run"] = predict(chosen, image, chosen.out / "cells", tile_px=chosen.tile_px)
    print(json.dumps(report["run"]), flush=True)
    report["against truth"] = compare(chosen, image, truth, report["run"], name="truth")
    if chosen.other_tile_px:
        report["other run"] = predict(chosen, image, chosen.out / "other", tile_px=chosen.other_tile_px)
        print(json.dumps(report["other run"]), flush=True)
        report["against other tiles"] = compare_runs(chosen, truth, report["run"], report["other run"])
    if chosen.untiled:
        report["untiled"] = predict(chosen, image, chosen.out / "untiled", tile_px=chosen.size, memory_mib=2**20)
        print(json.dumps(report["untiled"]), flush=True)
        labels = chosen.out / "untiled" / "large_labels.tif"
        report["against untiled"] = compare(chosen, image, labels, report["run"], name="untiled")
    (chosen.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", type=int, default=10_000, help="edge in px, a multiple of 4")
    parser.add_argument("--cells", type=int, default=50_000, help="fewer where they do not fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coco", type=Path, help="annotations of real cells; else live and dead ones are generated")
    parser.add_argument("--images", type=Path, help="folder of their images")
    parser.add_argument("--pattern", default="*", help="which of their images, e.g. 'fluor_*'")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory the prediction may plan with")
    parser.add_argument("--tile-px", type=int, help="distance between tiles; else the runtime chooses")
    parser.add_argument("--other-tile-px", type=int, help="of a second run, to compare the same cells in other tiles")
    parser.add_argument("--threads", type=int, help="of the processor; else all")
    parser.add_argument("--untiled", action="store_true", help="compare with a result in one piece as well")
    parser.add_argument("--out", type=Path, default=Path("runs/big_image"), help="folder for all that is made")
    return parser.parse_args()


def open_fields(chosen: argparse.Namespace, manifest: Manifest) -> CellDataset:
    """Where the cells are cut out."""
    if chosen.coco is None:
        return SyntheticLiveDead(fields=8, height=768, width=768, cells=(150, 250), falloff=0.0, seed=chosen.seed)
    categories = list(manifest.classes[1:])
    return CocoDataset(annotations=chosen.coco, images=chosen.images, pattern=chosen.pattern, categories=categories)


def predict(
    chosen: argparse.Namespace, image: Path, out: Path, *, tile_px: int | None, memory_mib: int | None = None
) -> dict[str, Any]:
    """What a process that predicts the image says of itself."""
    given = {"memory_mib": memory_mib or chosen.memory_mib, "tile_px": tile_px, "threads": chosen.threads}
    command = [sys.executable, "-c", PREDICT, str(chosen.bundle), str(image), str(out), json.dumps(given)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(chosen: argparse.Namespace, image: Path, truth: Path, run: dict[str, Any], *, name: str) -> dict[str, Any]:
    """Print a table of the errors, and save pictures of them; the table's numbers by row."""
    true, pred = (tifffile.imread(path, out="memmap") for path in (truth, chosen.out / "cells" / "large_labels.tif"))
    lines = find_lines(true.shape, tile_px=run["tile_px"], overlap_px=run["overlap_px"])
    verdicts = judge(measure_overlaps(true, pred))
    rows = tabulate(verdicts, lines, shape=true.shape, tile_px=run["tile_px"])
    print_table(rows, name)
    planes = tifffile.imread(image, out="memmap").reshape(-1, *true.shape)
    places = choose_places(verdicts, lines, np.random.default_rng(chosen.seed))
    save_crops(chosen.out / f"borders_{name}.png", planes, true, pred, lines, places)
    text = f"{run['found']} cells found in {run['tiles']} tiles of {run['tile_px']} px"
    save_overview(chosen.out / "overview.png", chosen.out / "cells" / "large_overlay.png", lines, true.shape, text)
    return rows


def compare_runs(
    chosen: argparse.Namespace, truth: Path, run: dict[str, Any], other: dict[str, Any]
) -> dict[str, dict[str, int | float]]:
    """Print a table of the errors of two runs on each one's own lines, where the other has none; its numbers by row."""
    true = tifffile.imread(truth, out="memmap")
    verdicts, lines = {}, {}
    for folder, one in (("cells", run), ("other", other)):
        name = f"{one['tile_px']} px"
        pred = tifffile.imread(chosen.out / folder / "large_labels.tif", out="memmap")
        verdicts[name] = judge(measure_overlaps(true, pred))
        lines[name] = find_lines(true.shape, tile_px=one["tile_px"], overlap_px=one["overlap_px"])
    rows = {}
    for owner, stranger in (tuple(lines), tuple(reversed(lines))):
        for kind, some in lines[owner].items():
            alone = keep_away(some, list(lines[stranger].values()))
            for name in (owner, stranger):
                where = "with" if name == owner else "without"
                rows[f"{kind} of {owner}, {where}"] = count_errors(verdicts[name], alone)
    print_table(rows, "truth, in two runs")
    return rows


def tabulate(
    verdicts: Verdicts, lines: dict[str, Lines], *, shape: tuple[int, int], tile_px: int
) -> dict[str, dict[str, int | float]]:
    """Errors of all cells, of those on each kind of line, and of those on these lines moved."""
    rows = {"all": count_errors(verdicts, None)}
    for name, some in lines.items():
        rows[name] = count_errors(verdicts, some)
        moved = [count_errors(verdicts, one) for one in shift_lines(lines, name, shape=shape, tile_px=tile_px)]
        if moved:
            rows[f"{name}, moved"] = average(moved)
    return rows


def print_table(rows: dict[str, dict[str, int | float]], name: str) -> None:
    """The table, errors with their rates."""
    wide = max(map(len, [f"against {name}", *rows])) + 2
    print(f"{'against ' + name:{wide}}" + "".join(f"{column:>{width}}" for column, width in WIDTHS.items()))
    for row, found in rows.items():
        text = f"{row:{wide}}{found['cells']:10.0f}"
        text += "".join(f"{found[column]:10.3f}" for column in ("F1", "recall", "precision", "IoU"))
        for error in ERRORS:
            if f"sd {error}" in found:
                text += f"{found[error]:9.1f} ± {found[f'sd {error}']:4.1f}"
            else:
                text += f"{found[error]:8} ({compute_rate(found, error):5.1f})"
        print(text, flush=True)


if __name__ == "__main__":
    main()
