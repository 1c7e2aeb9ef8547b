"""Time of finding cells, in eager mode on the CPU: our CenterMask2 lite against other detectors, which take turns.

python benchmarks/detector_speed.py --rounds 15 --threads 1 2 --detections 100 500

The others are torchvision's Mask R-CNN with ResNet-50 and, where detectron2 can be imported, its Mask R-CNN and the
same CenterMask2 in two ways: as this library's bridge gives it, and with detectron2's own FPN and ROIAlign in place of
ours and all masks drawn at once, as its heads do. Both have our weights and must find what ours finds; the layers that
detectron2 lacks (VoVNet, the FCOS head, the mask and MaskIoU head) are ours there as well.

Timed is everything from the image tensor to boxes, scores, classes and masks of 28 px, and inside the same call the
trunk: backbone and pyramid. Weights are untrained, so what is found says nothing; instead every net gives exactly as
many masks as asked for, or the run stops. Thresholds are 0 and suppression is nearly off, so that each net compares as
many candidates as its options allow: CenterMask2 nine for each cell per level, Mask R-CNN ``--proposals`` per level and
in all.

A ratio is the median over the rounds of their time by ours in the same round. Prints a table and one line of JSON, and
exits with 1 when a ratio of whole nets in fp32 is below ``--least-ratio``. The bridge runs our own layers, so that its
ratio also shows what chance does. On a busy machine ``--clock cpu`` counts the time that this process computes, for one
thread, and OMP_WAIT_POLICY=passive in the environment keeps two threads from computing while they wait for each other.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from dense_cells import CLASSES, LITE, build_net, draw_sample
from mask_rcnn import ANCHORS_PX, MaskRcnn
from torch import Tensor, nn

from cellvision.errors import ConfigError
from cellvision.models.base import SegNet
from cellvision.models.build import build_model
from cellvision.models.detectron2 import build_centermask
from cellvision.types import DataStats

NMS_IOU = 0.9
"""So high that hardly a box is left out for another, or untrained nets would not find as many as asked for."""

PARTS = ("whole", "trunk", "rest")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Row = dict[str, Any]
Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A net that takes part.

    Attributes:
        run: from (1, 1, H, W) uint8 to "boxes", "scores", "masks" and whatever else was found, (D, ...) each.
        trunk: the part of ``net`` that makes the pyramid.
        limit: sets how many cells an image gives at most.
    """

    name: str
    net: nn.Module
    run: Callable[[Tensor], dict[str, Tensor]]
    trunk: nn.Module
    limit: Callable[[int], None]


def main() -> None:
    """Let the nets take turns for every number of threads and of cells."""
    chosen = parse_arguments()
    warnings.simplefilter("ignore")  # detectron2 uses what torch is giving up
    images = [torch.from_numpy(draw_sample(chosen, index).image)[None] for index in range(chosen.images)]
    contenders = build_contenders(chosen)
    rows: list[Row] = []
    print(f"{chosen.height}x{chosen.width} px, {chosen.dtype}, {chosen.clock} time, {chosen.rounds} rounds")
    print(f"{'median ms, and times ours':36}{'threads':>8}{'masks':>7}" + "".join(f"{part:>8}" for part in PARTS * 2))
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        for detections in chosen.detections:
            for row in compare(contenders, images, chosen, detections):
                rows.append({"threads": threads, "detections": detections, **row})
                print(format_row(rows[-1]), flush=True)
    slower = [row for row in rows if row["whole_ratio"] < chosen.least_ratio] if chosen.dtype == "fp32" else []
    print(json.dumps({**vars(chosen), "torch": torch.__version__, "slower": len(slower), "rows": rows}))
    sys.exit(int(bool(slower)))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--detections", type=int, nargs="+", default=[100, 500], help="masks that each net gives")
    parser.add_argument("--proposals", type=int, default=1000, help="of Mask R-CNN at most, per level and in all")
    parser.add_argument("--height", type=int, default=520, help="px")
    parser.add_argument("--width", type=int, default=704, help="px")
    parser.add_argument("--cells", type=int, default=100, help="drawn in each image")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--backbone", default="vovnet39", help="of ours")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast")
    parser.add_argument("--channels-last", action="store_true", help="memory format of all nets")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--least-ratio", type=float, default=0.97, help="below 1, since equal nets differ by chance")
    return parser.parse_args()


def build_contenders(chosen: argparse.Namespace) -> list[Contender]:
    """Ours first; the others are told apart by what they cost, not by what they find."""
    ours = build_net(chosen, decoding={"score_threshold": 0.0, "nms_iou": NMS_IOU})
    found = [wrap_net("CenterMask2", ours, ours.detector.backbone, limit_fcos(ours.detector))]
    found.append(build_torchvision(chosen.proposals))
    try:
        found += build_theirs(chosen, ours)
    except ConfigError as error:
        print(f"without detectron2's nets: {error}")
    for one in found:
        one.net.eval()
        if chosen.channels_last:
            one.net.to(memory_format=torch.channels_last)
    return found


def build_torchvision(proposals: int) -> Contender:
    """Mask R-CNN as the other benchmarks train it, with as many proposals as torchvision and detectron2 take."""
    net = MaskRcnn(in_channels=1, classes=CLASSES)
    net.set_statistics(DataStats(offset=(0.0,), scale=(255.0,), class_pixels=(1, 1)))
    parts = net.model
    parts.rpn._pre_nms_top_n["testing"] = parts.rpn._post_nms_top_n["testing"] = proposals
    parts.roi_heads.score_thresh, parts.roi_heads.nms_thresh = 0.0, NMS_IOU
    limit = partial(setattr, parts.roi_heads, "detections_per_img")
    return wrap_net("torchvision's Mask R-CNN", net, parts.backbone, limit)


def build_theirs(chosen: argparse.Namespace, ours: SegNet) -> list[Contender]:
    """The nets that are detectron2's, or built with its parts; ConfigError without detectron2."""
    settings = {name.replace("fpn_channels", "out_channels"): value for name, value in LITE.items()}
    settings |= {"backbone": chosen.backbone, "levels": (3, 4, 5), "norm": "batch", "freeze_at": 0, "num_classes": 1}
    settings |= {"mask_attention": True, "mask_iou": True, "roi_criterion": "ratio", "pixel_mean": (0.0,)}
    settings |= {"score_threshold": 0.0, "nms_iou": NMS_IOU, "pixel_std": (255.0,)}
    bridge = build_centermask(**settings)
    bridge.load_state_dict(ours.detector.state_dict())
    own = use_their_parts(copy.deepcopy(bridge))
    mask_rcnn = build_their_mask_rcnn(chosen.proposals)
    limit = partial(setattr, mask_rcnn.roi_heads.box_predictor, "test_topk_per_image")
    return [
        wrap_theirs("CenterMask2, detectron2's bridge", bridge, limit_fcos(bridge)),
        wrap_theirs("CenterMask2, detectron2's parts", own, limit_fcos(own)),
        wrap_theirs("detectron2's Mask R-CNN", mask_rcnn, limit),
    ]


def use_their_parts(model: Any) -> Any:
    """``model`` itself with detectron2's FPN and ROIAlign for ours, and the weights that it has."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import FPN, Backbone
    from detectron2.modeling.backbone.fpn import LastLevelP6P7
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    class Stages(Backbone):
        def __init__(self, bottom_up: nn.Module) -> None:
            super().__init__()
            self.bottom_up = bottom_up

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {f"stage{level}": maps for level, maps in self.bottom_up(images).items()}

        def output_shape(self) -> dict[str, Any]:
            widths = self.bottom_up.widths
            return {f"stage{level}": ShapeSpec(channels=widths[level], stride=2**level) for level in widths}

    class Pool(ROIPooler):
        def forward(self, pyramid: dict[int, Tensor], boxes: Tensor, images: Tensor, image_areas: Tensor) -> Tensor:
            return super().forward([pyramid[level] for level in pool.strides], [Boxes(boxes)])

    ours, pool, width = model.backbone, model.roi_heads.pool, model.backbone.out_channels
    stages = Stages(ours.bottom_up)
    theirs = FPN(stages, list(stages.output_shape()), width, top_block=LastLevelP6P7(width, width, "p5"))
    left_out = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert all("bottom_up" in name for name in (*left_out.missing_keys, *left_out.unexpected_keys))
    model.backbone = theirs
    model.roi_heads.pool = Pool(pool.side, [1 / stride for stride in pool.strides.values()], 0, "ROIAlignV2")
    model.roi_heads.roi_chunk = 10**9
    return model


def build_their_mask_rcnn(proposals: int) -> Any:
    """detectron2's Mask R-CNN of its model zoo, for one channel and with anchors for cells."""
    changes: dict[str, Any] = {"PIXEL_MEAN": [0.0], "PIXEL_STD": [255.0]}
    changes |= {"BACKBONE.FREEZE_AT": 0, "RESNETS.NORM": "BN"}
    changes |= {"ROI_HEADS.SCORE_THRESH_TEST": 0.0, "ROI_HEADS.NMS_THRESH_TEST": NMS_IOU}
    changes |= {"RPN.PRE_NMS_TOPK_TEST": proposals, "RPN.POST_NMS_TOPK_TEST": proposals}
    changes |= {"ANCHOR_GENERATOR.SIZES": [[size] for size in ANCHORS_PX]}
    overrides = {f"MODEL.{name}": value for name, value in changes.items()}
    config_file = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    parts = {"in_channels": 1, "classes": CLASSES, "config_file": config_file, "overrides": overrides}
    return build_model(name="detectron2", **parts).model


def wrap_net(name: str, net: SegNet, trunk: nn.Module, limit: Callable[[int], None]) -> Contender:
    """A net of this library."""

    def run(image: Tensor) -> dict[str, Tensor]:
        return {key: value[0] for key, value in net(image).items()}

    return Contender(name=name, net=net, run=run, trunk=trunk, limit=limit)


def wrap_theirs(name: str, model: Any, limit: Callable[[int], None]) -> Contender:
    """A detectron2 net, without the step that enlarges masks to the image."""

    def run(image: Tensor) -> dict[str, Tensor]:
        found = model.inference([{"image": image[0]}], do_postprocess=False)[0]
        return {"boxes": found.pred_boxes.tensor, "scores": found.scores, "masks": found.pred_masks.squeeze(1)}

    return Contender(name=name, net=model, run=run, trunk=model.backbone, limit=limit)


def limit_fcos(detector: Any) -> Callable[[int], None]:
    """How to say how many boxes FCOS gives, out of as many candidates as this takes by default."""

    def limit(count: int) -> None:
        fcos = detector.proposal_generator
        fcos.decoding = replace(fcos.decoding, pre_nms=None, post_nms=count)

    return limit


def compare(contenders: list[Contender], images: list[Tensor], chosen: argparse.Namespace, count: int) -> list[Row]:
    """One row per net: medians in ms, and ratios to the first net."""
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if chosen.dtype == "bf16" else nullcontext()
    seconds: dict[str, Seconds] = {one.name: {part: [] for part in PARTS} for one in contenders}
    with torch.inference_mode(), cast:
        for one in contenders:
            one.limit(count)
        check_results(contenders, images, count, exact=chosen.dtype == "fp32")  # the warm-up as well
        for turn in range(chosen.rounds):
            first = turn % len(contenders)
            for one in contenders[first:] + contenders[:first]:
                taken = measure(one, images[turn % len(images)], CLOCKS[chosen.clock])
                for part, value in zip(PARTS, taken, strict=True):
                    seconds[one.name][part].append(value)
    ours = seconds[contenders[0].name]
    return [{"net": name, **summarize(found, ours)} for name, found in seconds.items()]


def check_results(contenders: list[Contender], images: list[Tensor], need: int, *, exact: bool) -> None:
    """Stop unless every net gives as many masks as asked for, and the same net the same ones; runs each of them."""
    for image in images:
        first: dict[str, Tensor] = {}
        for one in contenders:
            found = one.run(image)
            count = len(found["masks"])
            if count != need or found["masks"].shape[1:] != (28, 28):
                sys.exit(f"{one.name} gives {count} masks; need {need} of each net; try fewer --detections")
            assert all(found[name].isfinite().all() for name in ("boxes", "scores", "masks"))
            if exact and one.name.startswith("CenterMask2"):
                first = first or found
                torch.testing.assert_close(found["boxes"], first["boxes"], atol=1e-2, rtol=0)
                torch.testing.assert_close(found["masks"], first["masks"], atol=1e-4, rtol=0)


def measure(one: Contender, image: Tensor, clock: Callable[[], float]) -> tuple[float, ...]:
    """Seconds of each of PARTS in one call."""
    times: list[float] = []

    def note(*_: Any) -> None:
        times.append(clock())

    with one.trunk.register_forward_pre_hook(note), one.trunk.register_forward_hook(note):
        note()
        one.run(image)
        note()
    began, trunk_began, trunk_ended, ended = times
    return ended - began, trunk_ended - trunk_began, ended - trunk_ended + trunk_began - began


def summarize(seconds: Seconds, ours: Seconds) -> dict[str, float]:
    """Medians in ms, and how many times as long as ours it takes."""
    found = {f"{key}_ms": round(1000 * statistics.median(values), 1) for key, values in seconds.items()}
    for key, values in seconds.items():
        ratios = [theirs / own for theirs, own in zip(values, ours[key], strict=True)]
        found[f"{key}_ratio"] = round(statistics.median(ratios), 3)
    return found


def format_row(row: Row) -> str:
    """A line of the table."""
    times = "".join(f"{row[f'{part}_ms']:8.0f}" for part in PARTS)
    ratios = "".join(f"{row[f'{part}_ratio']:8.2f}" for part in PARTS)
    return f"{row['net']:36}{row['threads']:8}{row['detections']:7}{times}{ratios}"


if __name__ == "__main__":
    main()
