"""Every form of trained nets side by side: PyTorch, ONNX in fp32, fp16, INT8 and in two graphs, and C++.

python benchmarks/forms.py U-Net=CKPT 'CenterMask2 lite=CKPT' --data data=coco data.root=PATH 'data.pattern=fluor_*' \
    --fields 20 --out runs/forms

Each form's cells, accuracy and difference from PyTorch are of the same real fields: the first held-out ones together,
and three on their own: the largest piece of a held-out field without a cell, the held-out field with nearest to 50
cells, and a mosaic of the densest pieces of 256 px with 1,400 cells or more, of which a net is to find 1,000. Fields
are shown in one piece, so that no tile's edge is taken for a difference. Forms are made without the gate, so that those
that it would refuse are here too.

C++ is ``build/cpp/cellvision_predict`` (``make cpp``) with each of these bundles. It delivers cells, not probabilities:
"of cells" is an accuracy of what is delivered alone, for every form (the class of each pixel by the cell that it is
of, or the average precision of the cells that are above the threshold), and differences of C++ are from Python's
runtime with the same bundle, of scores and pixels of those cells.

Times are of one field of 520 x 704 px, in turns; ratios are medians over the rounds of ratios within one. Writes
forms.md and forms.json to ``--out``.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from hydra import compose, initialize_config_dir
from parity_fields import SOME, choose_fields, describe_fields

from cellvision.bundle import load_manifest
from cellvision.commands.progress import show_progress
from cellvision.composition import build_data
from cellvision.data.image_writer import write_image
from cellvision.export.forms import Quantizing, write_half, write_int8
from cellvision.export.gate.found import LARGEST_WHOLE_PX, Agreement, open_bundle, open_net
from cellvision.export.gate.measure import NET, Measurement, measure_forms
from cellvision.export.graph_options import GraphOptions
from cellvision.export.progress import PhaseLines, Tell
from cellvision.export.quantize.calibration import collect_training_fields
from cellvision.export.writer import export_checkpoint
from cellvision.metrics.accuracy import Accuracy, Found, choose_headlines
from cellvision.metrics.cost.timing import describe_machine
from cellvision.metrics.instances.coco_ap import compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import Overlaps, compute_overlaps, join_overlaps
from cellvision.metrics.semantic import compute_confusion, compute_semantic_scores
from cellvision.models.base import SegNet
from cellvision.runtime.cells import Cells
from cellvision.training.checkpoint import load_net
from cellvision.types import Sample

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "build" / "cpp" / "cellvision_predict"
CPP, ORT = "C++, ", "ORT "
SIZE = (520, 704)  # px, timed
FREE_MIB = 65536  # for C++: no limit, so that a field stays in one piece
DIFFERENCES = {"": "probability", "scores_": "score", "masks_": "mask", "boxes_": "box, px"}

Predict = Callable[[Sample], Found]


def main() -> None:
    """Make the forms of each net, measure them, and write tables."""
    chosen = parse_arguments()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = build_data(compose("train", overrides=["run_dir=unused", *chosen.data]).data)
    held_out = data.collect_held_out(sys.maxsize)
    fields = {"held out": held_out[: chosen.fields], **choose_fields(held_out)}
    images = [field.image for field in collect_training_fields(data, chosen.calibration_fields)]
    chosen.out.mkdir(parents=True)
    record: dict[str, Any] = {"machine": describe_machine(), "fields": describe_fields(fields), "nets": {}}
    text = f"Fields: {'; '.join(f'{name}: {facts}' for name, facts in record['fields'].items())}.\n"
    for name, checkpoint in chosen.nets.items():
        net, _ = load_net(checkpoint)
        folder = chosen.out / name.replace(" ", "_")
        with PhaseLines() as tell:
            forms = write_forms(net, checkpoint, folder, fields["held out"][:4], images, chosen, tell)
        rows = measure_fields(net, forms, fields)
        costs: list[Measurement] = []
        if chosen.runs:
            with show_progress(f"{name}: times", unit="steps") as progress:
                timed = fields[f"about {SOME}"]
                how: dict[str, Any] = {"threads": chosen.threads, "sizes": [SIZE], "runs": chosen.runs}
                costs = measure_forms(net, forms, timed, checkpoint=checkpoint, progress=progress, **how)
        record["nets"][name] = {
            "checkpoint": str(checkpoint),
            "fields": rows,
            "costs": [one.to_record() for one in costs],
        }
        table = f"\n## {name}\n\n{to_table(rows)}\n{to_cost_table(costs) if costs else ''}"
        print(table, flush=True)
        text += table
        (chosen.out / "forms.json").write_text(json.dumps(record, indent=2) + "\n")
        (chosen.out / "forms.md").write_text(text)


def parse_arguments() -> argparse.Namespace:
    """What the user asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", metavar="NAME=CKPT", help="checkpoints of train.py, each with a name")
    parser.add_argument("--data", nargs="+", default=[], help="settings of train.py that choose the data")
    parser.add_argument("--fields", type=int, default=20, help="held-out fields")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="to time with")
    parser.add_argument("--runs", type=int, default=9, help="of each form that count, for times; 0 for none")
    parser.add_argument("--calibration", default="minmax", help="minmax | percentile | entropy")
    parser.add_argument("--calibration-fields", type=int, default=16, help="training fields for INT8 ranges")
    parser.add_argument("--max-cells", type=int, default=2000, help="of an instance net, places for cells")
    parser.add_argument("--input-dtype", default="uint8", help="of the graphs")
    parser.add_argument("--out", type=Path, default=Path("runs/forms"), help="new folder")
    chosen = parser.parse_args()
    pairs = [pair.partition("=") for pair in chosen.nets]
    chosen.nets = {name: Path(path) for name, _, path in pairs}
    if wrong := next(("".join(pair) for pair in pairs if not Path(pair[2]).is_file()), None):
        parser.error(f"no checkpoint in {wrong!r}; need NAME=CKPT")
    return chosen


def write_forms(
    net: SegNet,
    checkpoint: Path,
    folder: Path,
    samples: Sequence[Sample],
    images: Sequence[np.ndarray],
    chosen: argparse.Namespace,
    tell: Tell,
) -> dict[str, Path]:
    """Bundle folders by the form's name, the fp32 graph first."""
    max_cells = chosen.max_cells if net.detecting else None
    options = GraphOptions(input_dtype=chosen.input_dtype, max_cells=max_cells)
    forms = {"ORT fp32": folder / "fp32", "ORT fp16": folder / "fp16", "ORT INT8": folder / "int8"}
    tell(f"forms of {checkpoint}")
    export_checkpoint(checkpoint, forms["ORT fp32"], samples=samples, options=options, tell=tell)
    for name in ("ORT fp16", "ORT INT8"):
        forms[name].mkdir()
    write_half(net, forms["ORT fp32"], forms["ORT fp16"])
    write_int8(forms["ORT fp32"], forms["ORT INT8"], Quantizing(images=images, method=chosen.calibration, tell=tell))
    if net.detecting:
        forms["ORT fp32, two graphs"] = folder / "parted"
        parted = replace(options, form="parted")
        export_checkpoint(checkpoint, forms["ORT fp32, two graphs"], samples=samples, options=parted, tell=tell)
    return forms


def measure_fields(
    net: SegNet, forms: Mapping[str, Path], fields: Mapping[str, Sequence[Sample]]
) -> list[dict[str, Any]]:
    """A row for each group of fields and each form: scores, and differences from the net in PyTorch."""
    manifest = load_manifest(forms["ORT fp32"])
    settings = {name: getattr(manifest, name) for name in ("splitting", "live_threshold", "detecting")}
    find = open_net(net, **settings)
    ways: dict[str, Callable[[], Predict]] = {NET: lambda: find}
    for name, folder in forms.items():
        ways[name] = partial(open_bundle, folder, largest_px=LARGEST_WHOLE_PX)
    if RUNNER.is_file():
        ways |= {name.replace(ORT, CPP): partial(open_cpp, folder) for name, folder in forms.items()}
    headlines = choose_headlines(manifest.kind, manifest.classes)[:1]
    rows = []
    with show_progress("cells", unit="fields") as progress:
        total, done = sum(map(len, fields.values())) * len(ways), 0
        for group, samples in fields.items():
            known: dict[str, list[Found]] = {}
            for name, open_way in ways.items():
                tally = _Tally(net.spec.classes, manifest.splitting.foreground_threshold)
                predict = open_way()  # one after the other: each session keeps the memory of its largest field
                of_python = known.get(name.replace(CPP, ORT) if name.startswith(CPP) else NET)
                own = known.setdefault(name, [])
                for index, sample in enumerate(samples):
                    own.append(predict(sample))
                    tally.add(sample, own[index] if of_python is None else of_python[index], own[index])
                    progress(done := done + 1, total)
                rows.append({"fields": group, "form": name} | tally.compute(headlines))
                del predict
            if not RUNNER.is_file():
                rows.append({"fields": group, "form": f"{CPP}not built"})
    return rows


class _Tally:
    """What one form made of a group of fields, and how far that is from what another one made of them."""

    def __init__(self, classes: tuple[str, ...], mask_threshold: float) -> None:
        self.accuracy, self.agreement = Accuracy(classes, mask_threshold=mask_threshold), Agreement(classes)
        self.delivered = Delivered(classes)
        self.scores = {"max": 0.0, "sum": 0.0, "pairs": 0}
        self.true_cells, self.other_px, self.pixels = 0, 0, 0

    def add(self, sample: Sample, other: Found, found: Found) -> None:
        """Count a field."""
        self.accuracy.add(sample, found)
        self.delivered.add(sample, found.cells)
        self.agreement.add(other, found)
        if found.cells.score is not None and found.detections is None:
            self._add_scores(other.cells, found.cells)
        self.true_cells += len(sample.cell_classes)
        self.other_px += int(((get_labels(other.cells) > 0) != (get_labels(found.cells) > 0)).sum())
        self.pixels += get_labels(found.cells).size

    def _add_scores(self, other: Cells, cells: Cells) -> None:
        """Differences of scores of the cells that both have: pairs with an IoU above 0.5."""
        overlaps = compute_overlaps(InstanceField.from_cells(other), InstanceField.from_cells(cells))
        assert other.score is not None
        assert cells.score is not None
        same = overlaps.compute_mask_iou() > 0.5
        one, two = overlaps.pred[same], overlaps.true[same]
        differences = np.abs(other.score[one] - cells.score[two])
        self.scores["max"] = max(self.scores["max"], float(differences.max(initial=0)))
        self.scores["sum"] += float(differences.sum())
        self.scores["pairs"] += len(differences)

    def compute(self, headlines: Sequence[Any]) -> dict[str, Any]:
        """A row of the table."""
        scores = self.accuracy.compute()
        shown = {headline.words: scores.get(headline.score) for headline in headlines}
        row = {
            **self.agreement.compute(),
            "true_cells": self.true_cells,
            "cells": self.accuracy.cells,
            "scores": shown | {"F1 at IoU 0.5": scores.get("cell/f1"), "of cells": self.delivered.compute()},
            "other_pixels": self.other_px / self.pixels,
        }
        if pairs := self.scores["pairs"]:
            mean = self.scores["sum"] / pairs
            row |= {"scores_max_difference": self.scores["max"], "scores_mean_difference": mean}
        return row


class Delivered:
    """Accuracy of delivered cells alone: mask AP where they have scores, else mean IoU of the classes of pixels."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._overlaps: list[Overlaps] = []
        self._confusion = np.zeros((len(classes), len(classes)), np.int64)

    def add(self, sample: Sample, cells: Cells) -> None:
        """Count a field."""
        if cells.score is None:
            kinds = np.append(0, cells.class_id)[get_labels(cells)]
            self._confusion += compute_confusion(kinds, sample.class_map, len(self._classes))
        else:
            truth = InstanceField.from_label_image(sample.label_image, sample.cell_classes)
            self._overlaps.append(compute_overlaps(InstanceField.from_cells(cells), truth))

    def compute(self) -> float | None:
        """In 0..1, or None where it is undefined."""
        if not self._overlaps:
            return compute_semantic_scores(self._confusion).to_dict(self._classes).get("pixel/miou")
        return (
            compute_coco_ap(join_overlaps(self._overlaps), kind="mask", classes=self._classes).to_dict().get("mask/ap")
        )


def get_labels(cells: Cells) -> np.ndarray:
    """(H, W) label image, which is in memory here."""
    assert cells.label_image is not None
    return cells.label_image


def open_cpp(bundle: Path) -> Predict:
    """What finds the cells of a sample with the C++ program."""
    manifest = load_manifest(bundle)
    more = ["--no-overlay", "--tile-px", str(LARGEST_WHOLE_PX), "--memory-mib", str(FREE_MIB)]

    def predict(sample: Sample) -> Found:
        with tempfile.TemporaryDirectory() as name:
            image, out = Path(name) / "field.tif", Path(name) / "cells"
            write_image(image, sample, manifest.channels)
            command = [str(RUNNER), "--bundle", str(bundle), "--out", str(out), *more, str(image)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            labels = tifffile.imread(out / "field_labels.tif").astype(np.int32)
            with (out / "cells.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        kinds = np.array([manifest.classes.index(row["class"]) for row in rows], np.int64)
        scores = np.array([float(row["score"]) for row in rows]) if manifest.kind == "instance" else None
        return Found(cells=to_cells(labels, kinds, scores, manifest.classes, manifest.kind))

    return predict


def to_cells(
    labels: np.ndarray, kinds: np.ndarray, scores: np.ndarray | None, classes: tuple[str, ...], kind: str
) -> Cells:
    """Cells of which only labels, classes and scores are known."""
    number = np.arange(1, len(kinds) + 1, dtype=np.int32)
    none = np.full(len(kinds), np.nan)
    return Cells(
        shape=(labels.shape[0], labels.shape[1]),
        classes=classes,
        channels=(),
        kind=kind,
        pixel_size_um=None,
        label_image=labels,
        label=number,
        class_id=kinds,
        area_px=np.bincount(labels.ravel(), minlength=len(kinds) + 1)[1:],
        centroid_y_px=none,
        centroid_x_px=none,
        bbox=np.zeros((len(kinds), 4), np.int64),
        mean_intensity=np.zeros((len(kinds), 0)),
        probabilities=np.zeros((len(kinds), len(classes) - 1)),
        score=scores,
    )


def to_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Cells, scores and differences from PyTorch as a markdown table."""
    starts = [start for start in DIFFERENCES if any(f"{start}max_difference" in row for row in rows)]
    scores = list(rows[0]["scores"])
    differences = [f"{DIFFERENCES[start]}, max / mean difference" for start in starts]
    heads = ["fields", "form", "true cells", "cells", *scores, *differences]
    lines = [[*heads, "pixels that are cell on one side only", "same cells, F1", "their IoU"]]
    for row in rows:
        if "cells" not in row:
            lines.append([row["fields"], row["form"], *[""] * (len(lines[0]) - 2)])
            continue
        found = [show(row["scores"][name], ".3f") for name in scores]
        for start in starts:
            both = [show(row.get(f"{start}{kind}_difference"), ".1e") for kind in ("max", "mean")]
            found.append(" / ".join(both) if all(both) else "")
        found += [f"{row['other_pixels']:.1e}", *(show(row.get(name), ".4f") for name in ("cell_f1", "cell_iou"))]
        lines.append([row["fields"], row["form"], f"{row['true_cells']:,}", f"{row['cells']:,}", *found])
    return to_markdown(lines)


def to_cost_table(costs: Sequence[Measurement]) -> str:
    """Sizes, memory and times as a markdown table."""
    net, fp32 = costs[0], costs[1]
    assert fp32.size_bytes
    heads = ["form", "MB", "x fp32", "peak MiB"]
    for row in net.latency:
        heads += [f"ms, {row['threads']} thread{'s' * (row['threads'] > 1)}", "x fp32", "x PyTorch"]
    lines = [heads]
    for one in costs:
        size, memory = one.size_bytes, one.memory.peak_mib if one.memory else None
        megabytes = show(size and size / 1e6, ".1f")
        cells = [one.name, megabytes, show(size and size / fp32.size_bytes, ".2f"), show(memory, ".0f")]
        for row, of_net in zip(one.latency, net.latency, strict=True):
            cells += [f"{row['p50_ms']:.0f}", f"{row['ratio']:.2f}", f"{row['p50_ms'] / of_net['p50_ms']:.2f}"]
        lines.append(cells)
    return to_markdown(lines)


def to_markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head."""
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]]) + "\n"


def show(value: float | None, form: str) -> str:
    """The number, or nothing."""
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
