"""Peak memory of training, prediction and evaluation where one image holds thousands of cells.

python benchmarks/dense_cells.py
python benchmarks/dense_cells.py --cases train --backbones vovnet39 --train-limit-gb 4

The images are generated, with exactly as many cells as asked for. Every case runs in a process of its own, whose peak
is read from the operating system (Linux), and is a whole image in one piece on the CPU:

train      two steps of AdamW with forward, losses and backward, for boxes as the model is set by default and as
           LIVECell was trained: 15,000 proposals, 3,000 boxes per image, a quarter of them on cells.
predict    the net and all that follows up to a label image. Untrained weights are turned so that as many boxes come out
           as there are cells.
evaluate   instance scores of many such images; predictions are the truth, distorted.

Prints a table and exits with 1 when a process, or what an evaluation keeps of an image, takes more than its limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the process that starts the others stays light
    from cellvision.models.base import SegNet
    from cellvision.types import Sample

CASES = ("train", "predict", "evaluate")
CLASSES = ("background", "cell")
LITE = {"fpn_channels": 128, "class_convs": 2, "box_convs": 2, "mask_convs": 2, "maskiou_convs": 2}
TRAINING: dict[str, dict[str, Any]] = {
    "default boxes": {},
    "LIVECell's boxes": {
        "proposals": {"pre_nms": 2000, "post_nms": 15_000},
        "roi_sampling": {"per_image": 3000},
    },
}
BOX_PX = 12
"""Side of all boxes of an untrained net, by its weights."""


def main() -> None:
    """Measure the cases, print a table; or, as one of its own processes, measure one and print a line of JSON."""
    chosen = parse_arguments()
    if chosen.only:
        print(json.dumps(MEASURE[chosen.case](chosen)))
        return
    print(f"{chosen.cells} cells in {chosen.height}x{chosen.width} px, {chosen.threads} threads")
    print(f"{'':44}{'peak GB':>9}{'growth GB':>11}{'limit GB':>10}{'s':>8}  {'':4}")
    is_over = False
    for name, limit, found in run_cases(chosen):
        over = found["peak_gb"] > limit or found.get("kept_mb", 0) > chosen.kept_limit_mb
        numbers = f"{found['peak_gb']:9.2f}{found['growth_gb']:11.2f}{limit:10.2f}{found['seconds']:8.1f}"
        print(f"{name:44}{numbers}  {'OVER' if over else 'ok':4}  {found['what']}", flush=True)
        is_over |= over
    sys.exit(int(is_over))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--backbones", nargs="+", default=["vovnet39", "vovnet19_slim"])
    parser.add_argument("--height", type=int, default=520, help="px")
    parser.add_argument("--width", type=int, default=704, help="px")
    parser.add_argument("--cells", type=int, default=3000, help="per image, and boxes that a prediction gives")
    parser.add_argument("--images", type=int, default=50, help="of an evaluation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--train-limit-gb", type=float, default=8.0, help="10^9 bytes, as all GB here")
    parser.add_argument("--predict-limit-gb", type=float, default=2.5)
    parser.add_argument("--evaluate-limit-gb", type=float, default=1.5)
    parser.add_argument("--kept-limit-mb", type=float, default=2.0, help="growth of an evaluation with each image")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--backbone", help=argparse.SUPPRESS)
    parser.add_argument("--boxes", default="default boxes", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_cases(chosen: argparse.Namespace) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(name, limit in GB, what was measured) of every case, one process after the other."""
    same = ("height", "width", "cells", "images", "threads")
    plain = [text for name in same for text in (f"--{name}", str(getattr(chosen, name)))]
    for case in chosen.cases:
        variants = [["--backbone", name] for name in chosen.backbones] if case != "evaluate" else [[]]
        if case == "train":
            variants = [[*one, "--boxes", boxes] for one in variants for boxes in TRAINING]
        for variant in variants:
            command = [sys.executable, str(Path(__file__)), "--only", "--case", case, *plain, *variant]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            name = " ".join([case, *variant[1::2]])
            yield name, getattr(chosen, f"{case}_limit_gb"), json.loads(done.stdout.splitlines()[-1])


def measure_training(chosen: argparse.Namespace) -> dict[str, Any]:
    """Two steps, so that the optimizer's own state is there in the second."""
    import torch

    from cellvision.types import Targets

    torch.set_num_threads(chosen.threads)
    net = build_net(chosen, **TRAINING[chosen.boxes]).train()
    sample, counts = draw_sample(chosen), []
    sampled = net.detector.roi_heads.pool.register_forward_pre_hook(lambda _, given: counts.append(len(given[1])))
    label_image = torch.from_numpy(sample.label_image)[None]
    targets = Targets(
        class_map=torch.from_numpy(sample.class_map)[None].long(),
        distance=torch.zeros(label_image.shape),
        label_image=label_image,
        cell_classes=(torch.from_numpy(sample.cell_classes),),
    )
    image = torch.from_numpy(sample.image)[None]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        sum(net.losses(image, targets).values()).backward()
        optimizer.step()

    found = measure(lambda: [step(), step()])
    sampled.remove()
    return {**found, "what": f"masks of {counts[-1]} boxes learned"}


def measure_prediction(chosen: argparse.Namespace) -> dict[str, Any]:
    """One image, down to the record of its cells."""
    import torch

    from cellvision.bundle import Splitting
    from cellvision.runtime.detections.cells import build_detected_cells
    from cellvision.runtime.detections.found import read_detections

    torch.set_num_threads(chosen.threads)
    decoding = {"score_threshold": 0.0, "nms_iou": 0.9, "post_nms": chosen.cells}
    net, sample = build_net(chosen, decoding=decoding).eval(), draw_sample(chosen)
    splitting = Splitting(method="instances", score_threshold=1e-6, min_visible=1e-6, min_area_px=1)
    counts = []

    @torch.inference_mode()
    def predict() -> None:
        outputs = {name: found.numpy() for name, found in net(torch.from_numpy(sample.image)[None]).items()}
        detections = read_detections(outputs, 0)
        cells = build_detected_cells(
            detections, sample.image, splitting=splitting, classes=CLASSES, channels=("phase",)
        )
        counts.extend([len(detections), len(cells)])

    found = measure(predict)
    return {**found, "what": f"{counts[0]} boxes, {counts[1]} cells in the label image"}


def measure_evaluation(chosen: argparse.Namespace) -> dict[str, Any]:
    """Many images; ``kept_mb`` is what each further one adds to the peak, from the tenth part of them on."""
    from cellvision.metrics.instance_state import InstanceMetrics
    from cellvision.metrics.instances.field import InstanceField

    metrics, rng, peaks = InstanceMetrics(CLASSES), np.random.default_rng(0), []

    def evaluate() -> None:
        for index in range(chosen.images):
            sample = draw_sample(chosen, index)
            found = InstanceField.from_label_image(
                distort(rng, sample.label_image), sample.cell_classes, score=rng.random(len(sample.cell_classes))
            )
            truth = InstanceField.from_label_image(sample.label_image, sample.cell_classes)
            metrics.update(found, truth, sample.name)
            peaks.append(read_gb("VmHWM"))
        scores.update(metrics.compute())

    scores: dict[str, float] = {}
    found = measure(evaluate)
    first = max(len(peaks) // 10, 1)
    kept = 1000 * (found["peak_gb"] - peaks[first - 1]) / max(len(peaks) - first, 1)
    stored = sum(getattr(part, name).nbytes for _, part in metrics.parts for name in vars(part) if name != "fields")
    what = f"{chosen.images} images, each adds {kept:.2f} MB ({stored / len(peaks) / 1e6:.2f} MB overlaps)"
    return {**found, "kept_mb": kept, "what": f"{what}, mask AP {scores['mask/ap']:.2f}"}


MEASURE: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "train": measure_training,
    "predict": measure_prediction,
    "evaluate": measure_evaluation,
}


def measure(work: Callable[[], Any]) -> dict[str, float]:
    """Peak of this process in all, and above what it holds now, in GB; and the seconds that ``work`` takes."""
    before, began = read_gb("VmRSS"), time.perf_counter()
    work()
    seconds, peak = time.perf_counter() - began, read_gb("VmHWM")
    return {"peak_gb": peak, "growth_gb": peak - before, "seconds": seconds}


def read_gb(name: str) -> float:
    """VmHWM, the peak, or VmRSS of this process; ``getrusage`` would count the process that started it as well."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{name}:"))


def build_net(chosen: argparse.Namespace, **settings: Any) -> SegNet:
    """A lite net that knows the range of the images, untrained but for the size of its boxes."""
    import torch

    from cellvision.models.build import build_model
    from cellvision.types import DataStats

    torch.manual_seed(0)
    parts = {"in_channels": 1, "classes": CLASSES, "backbone": chosen.backbone}
    net = build_model(name="centermask2", **parts, **LITE, **settings)
    net.set_statistics(DataStats(offset=(0.0,), scale=(255.0,), class_pixels=(1, 1)))
    proposals = net.detector.proposal_generator
    head = proposals.fcos_head
    torch.nn.init.zeros_(head.bbox_pred.weight)
    torch.nn.init.ones_(head.bbox_pred.bias)
    for scale, stride in zip(head.scales, proposals.strides.values(), strict=True):
        torch.nn.init.constant_(scale.scale, BOX_PX / 2 / stride)
    torch.nn.init.ones_(net.detector.roi_heads.mask_head.predictor.bias)  # the mask fills its box
    torch.nn.init.zeros_(net.detector.roi_heads.maskiou_head.maskiou.weight)  # and no box has a score below 0
    torch.nn.init.ones_(net.detector.roi_heads.maskiou_head.maskiou.bias)
    return net


def draw_sample(chosen: argparse.Namespace, index: int = 0) -> Sample:
    """One image full of cells."""
    from cellvision.data.synthetic import SyntheticCells

    count = (chosen.cells, chosen.cells)
    return SyntheticCells(fields=index + 1, height=chosen.height, width=chosen.width, cells=count).sample(index)


def distort(rng: np.random.Generator, label_image: np.ndarray) -> np.ndarray:
    """The label image with each pixel taken from one to two px away, neighbours from much the same place."""
    height, width = label_image.shape
    places = []
    for axis, size in enumerate((height, width)):
        coarse = rng.integers(-2, 3, (height // 8 + 1, width // 8 + 1))
        moves = np.repeat(np.repeat(coarse, 8, axis=0), 8, axis=1)[:height, :width]
        places.append((np.indices(label_image.shape)[axis] + moves).clip(0, size - 1))
    return label_image[tuple(places)]


if __name__ == "__main__":
    main()
