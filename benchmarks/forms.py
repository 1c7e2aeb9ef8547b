"""All forms of one trained net side by side: PyTorch, ONNX in fp32, fp16 and INT8, in one graph and in two, and C++.

python benchmarks/forms.py CKPT --data data=coco data.root=PATH 'data.pattern=fluor_*' --fields 20 --out runs/forms

Accuracy, cells and agreement with PyTorch are of the same held-out fields for all; times are taken in turns. Forms are
made without the gate, so that the table also shows those that it would refuse. The C++ runner (``make cpp``) reads the
fp32 bundle and is compared with the Python runtime, label image by label image.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from hydra import compose, initialize_config_dir

from cellvision.bundle import Channel, load_manifest
from cellvision.commands.progress import show_progress
from cellvision.composition import build_data
from cellvision.data.image_writer import write_image
from cellvision.export.forms import Quantizing, write_half, write_int8
from cellvision.export.gate.measure import Measurement, measure_forms
from cellvision.export.graph_options import FORMS, GraphOptions
from cellvision.export.quantize.calibration import collect_training_images
from cellvision.export.writer import export_checkpoint
from cellvision.metrics.accuracy import choose_headlines
from cellvision.runtime.predictor import Predictor
from cellvision.training.checkpoint import load_net
from cellvision.types import Sample

ROOT = Path(__file__).resolve().parent.parent
SIZE = (520, 704)  # px, timed
RUNNER = ROOT / "build" / "cpp" / "cellvision_predict"


def main() -> None:
    """Make the forms, measure them, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", nargs="+", default=[], help="settings of train.py that choose the data")
    parser.add_argument("--fields", type=int, default=20, help="held-out fields")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=7, help="of each form that count, for times")
    parser.add_argument("--calibration", default="minmax")
    parser.add_argument("--input-dtype", default="uint8")
    parser.add_argument("--out", type=Path, default=Path("runs/forms"))
    chosen = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = build_data(compose("train", overrides=["run_dir=unused", *chosen.data]).data)
    samples = data.collect_held_out(chosen.fields)
    net, _ = load_net(chosen.checkpoint)
    chosen.out.mkdir(parents=True)
    images = collect_training_images(data, 16)
    forms: dict[str, Path] = {}
    for form in FORMS if net.detecting else FORMS[:1]:
        source = forms[f"fp32 {form}"] = chosen.out / f"fp32_{form}"
        options = GraphOptions(input_dtype=chosen.input_dtype, form=form)
        export_checkpoint(chosen.checkpoint, source, samples=samples[:4], options=options)
        for precision in ("fp16", "int8"):
            folder = forms[f"{precision} {form}"] = chosen.out / f"{precision}_{form}"
            folder.mkdir()
            if precision == "fp16":
                write_half(net, source, folder)
            else:
                write_int8(source, folder, Quantizing(images=images, method=chosen.calibration))
    with show_progress("measuring", unit="steps") as progress:
        found = measure_forms(
            net,
            forms,
            samples,
            checkpoint=chosen.checkpoint,
            threads=chosen.threads,
            sizes=[SIZE],
            runs=chosen.runs,
            progress=progress,
        )
    cpp = compare_cpp(forms["fp32 whole"], samples, data.channels)
    print_table(found, load_manifest(forms["fp32 whole"]).kind, net.spec.classes)
    print(f"C++: {cpp}")
    record = {"forms": [one.to_record() for one in found], "cpp": cpp}
    (chosen.out / "forms.json").write_text(json.dumps(record, indent=2) + "\n")


def compare_cpp(bundle: Path, samples: list[Sample], channels: tuple[Channel, ...]) -> dict[str, Any] | str:
    """Cells of the C++ runner and of the Python runtime, and the share of pixels that differ."""
    if not RUNNER.is_file():
        return "not built; make cpp"
    predictor = Predictor(bundle)
    with tempfile.TemporaryDirectory() as name:
        images, out = Path(name) / "images", Path(name) / "cells"
        images.mkdir()
        for sample in samples:
            write_image(images / f"{sample.name}.tif", sample, channels)
        command = [str(RUNNER), "--bundle", str(bundle), "--out", str(out), "--no-overlay", str(images)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        cells, other, pixels = [0, 0], 0, 0
        for sample in samples:
            expected = predictor(sample.image).label_image
            assert expected is not None
            found = tifffile.imread(out / f"{sample.name}_labels.tif")
            cells[0] += int(expected.max(initial=0))
            cells[1] += int(found.max(initial=0))
            other += int((found != expected).sum())
            pixels += found.size
    return {"cells_python": cells[0], "cells_cpp": cells[1], "pixel_difference": other / pixels}


def print_table(found: tuple[Measurement, ...], kind: str, classes: tuple[str, ...]) -> None:
    """A line per form; times as a ratio to the first ONNX graph, one for each number of threads."""
    headlines = choose_headlines(kind, classes)
    heads = [one.words for one in headlines]
    heads += ["cells", "same cells, F1", "their overlap", "MB", "peak MiB", "ms", "time against fp32"]
    print("| form | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for one in found:
        cells = [f"{one.accuracy.get(headline.score, np.nan):.3f}" for headline in headlines]
        cells += [str(one.cells), *(f"{one.agreement.get(key, 1.0):.4f}" for key in ("cell_f1", "cell_iou"))]
        cells.append("" if one.size_bytes is None else f"{one.size_bytes / 1e6:.1f}")
        cells.append("" if one.memory is None else f"{one.memory.peak_mib:.0f}")
        cells.append(", ".join(f"{row['p50_ms']:.0f}" for row in one.latency))
        cells.append(", ".join(f"{row['ratio']:.2f}" for row in one.latency))
        print(f"| {one.name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
