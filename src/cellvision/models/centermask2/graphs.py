"""CenterMask2 as it is exported: from images to cells in one graph, or in two that a runtime joins.

The eager net gives each image as many cells as it has; a graph gives each image the same number of places, of which
those behind its last cell are not valid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cellvision.bundle import DETECTION_OUTPUTS, Detecting
from cellvision.errors import ExportError, explain
from cellvision.models.base import FREE_IMAGE_AXES, GraphPart
from cellvision.models.centermask2.fcos.decode import Proposals, rank
from cellvision.models.centermask2.options import FcosDecoding
from cellvision.models.centermask2.roi.grid_pool import GridPool
from cellvision.ops.nms import keep_best

if TYPE_CHECKING:
    from cellvision.models.centermask2.model import CenterMask2

EXAMPLE_REGIONS = 5
BATCH, REGIONS = {0: "batch"}, {0: "regions"}


def split_net(net: CenterMask2, image: Tensor, *, detecting: Detecting, parted: bool) -> tuple[GraphPart, ...]:
    """The parts of an exported net; see ``SegNet.part``.

    Raises:
        ExportError: the net fades overlapped boxes, which no graph here can.
    """
    if net.settings.decoding.soft_nms_sigma is not None:
        got = f"model.decoding.soft_nms_sigma={net.settings.decoding.soft_nms_sigma}"
        raise ExportError(explain(got=got, need="null for a graph", hint="model.decoding.soft_nms_sigma=null"))
    places = make_room(net.detector.proposal_generator.decoding, detecting.max_cells).candidates * len(
        net.detector.backbone.levels
    )
    if detecting.max_cells > places:
        got = f"max_cells={detecting.max_cells} of {places} candidates"
        raise ExportError(explain(got=got, need=f"at most {places}", hint="a larger model.decoding.pre_nms"))
    return _split_in_two(net, image, detecting) if parted else (_keep_whole(net, image, detecting),)


def make_room(decoding: FcosDecoding, max_cells: int) -> FcosDecoding:
    """The same for more cells in an image than ``post_nms``: as many candidates for each of them.

    With those for 1,000 cells, a window of 1,500 would lose the cells whose candidates are the worst, however many
    places there are for what is left after suppression.

    Example:
        >>> make_room(FcosDecoding(pre_nms=2000, post_nms=1000), 3000).candidates
        6000
    """
    more = max(max_cells, decoding.post_nms)
    return replace(decoding, pre_nms=-(-decoding.candidates * more // decoding.post_nms), post_nms=more)


def _keep_whole(net: CenterMask2, image: Tensor, detecting: Detecting) -> GraphPart:
    names = (*DETECTION_OUTPUTS, *(["mask_scores"] if net.settings.mask_iou else []))
    axes = {"image": FREE_IMAGE_AXES, **dict.fromkeys(names, BATCH)}
    module = WholeGraph(net, detecting)
    return GraphPart(role="whole", module=module, inputs={"image": image}, free_axes=axes, outputs=names)


def _split_in_two(net: CenterMask2, image: Tensor, detecting: Detecting) -> tuple[GraphPart, GraphPart]:
    trunk = TrunkGraph(net, detecting)
    with torch.no_grad():
        _, _, _, _, *maps = trunk(image)
    named = {f"map_{index}": each for index, each in enumerate(maps)}
    map_axes = {name: {0: "batch", 2: f"height_{i}", 3: f"width_{i}"} for i, name in enumerate(named)}
    found = ("boxes", "scores", "classes", "class_scores")
    masks = ("masks", "mask_ious") if net.settings.mask_iou else ("masks",)
    boxes = torch.tensor([[4.0, 6.0, 20.0, 30.0]]).repeat(EXAMPLE_REGIONS, 1)
    numbers = torch.zeros(EXAMPLE_REGIONS, dtype=torch.int64)
    area = torch.tensor([float(image.shape[-2] * image.shape[-1])])
    rows = dict.fromkeys(("boxes", "images", "classes", *masks), REGIONS)
    return (
        GraphPart(
            role="trunk",
            module=trunk,
            inputs={"image": image},
            free_axes={"image": FREE_IMAGE_AXES, **dict.fromkeys(found, BATCH), **map_axes},
            outputs=(*found, *named),
        ),
        GraphPart(
            role="masks",
            module=MaskGraph(net),
            inputs={**named, "boxes": boxes, "images": numbers, "classes": numbers + 1, "image_area": area},
            free_axes={**map_axes, **rows, "image_area": {}},
            outputs=masks,
        ),
    )


class WholeGraph(nn.Module):
    """(B, C, H, W) raw counts to (B, D, ...) detections, D = ``detecting.max_cells``, each image's best first."""

    def __init__(self, net: CenterMask2, detecting: Detecting) -> None:
        """Of a net in evaluation mode."""
        super().__init__()
        self.trunk = TrunkGraph(net, detecting)
        self.detecting = detecting

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The results in the order of DETECTION_OUTPUTS, then mask scores where the net rates its masks."""
        net, places = self.trunk.net, self.detecting.max_cells
        pyramid, found = self.trunk.find(image)
        kept = keep_best(found.boxes, found.scores, found.classes, self.detecting.nms_iou)
        scores, order = found.scores.where(kept, -1).topk(places)
        boxes, class_scores = _take(found.boxes, order), _take(found.class_scores, order)
        classes, valid = found.classes.gather(1, order), scores >= 0
        # Masks are drawn for what is there, and laid into their places among zeros.
        there = valid.flatten().nonzero().squeeze(1)
        regions = boxes.flatten(0, 1)[there]
        areas = torch.ones_like(regions[:, 0]) * (image.shape[-2] * image.shape[-1])
        heads = net.detector.roi_heads
        drawn = heads.draw(pyramid, regions, there // places, areas, classes.flatten()[there])
        size = (image.shape[0], places)
        is_there = valid.to(boxes.dtype)
        results = (
            boxes * is_there.unsqueeze(2),
            scores * is_there,
            (classes + 1) * valid,
            valid,
            class_scores * is_there.unsqueeze(2),
            _spread(drawn.masks, there, size),
        )
        return results if drawn.ious is None else (*results, scores * is_there * _spread(drawn.ious, there, size))


class TrunkGraph(nn.Module):
    """(B, C, H, W) raw counts to candidates with doubles, and the maps that masks are pooled from.

    No operator here has a size that depends on what is found; engines that cannot suppress doubles or pool regions
    can run it.
    """

    def __init__(self, net: CenterMask2, detecting: Detecting) -> None:
        """Of a net in evaluation mode."""
        super().__init__()
        self.net = net
        self.detecting = detecting
        self.decoding = make_room(net.detector.proposal_generator.decoding, detecting.max_cells)

    def find(self, image: Tensor) -> tuple[dict[int, Tensor], Proposals]:
        """The pyramid, and (B, P, ...) candidates with classes 0..K-1 and score -1 where there is none."""
        pyramid = self.net.encode_images(image)
        outputs = self.net.detector.predict(pyramid)
        strides = list(self.net.detector.proposal_generator.strides.values())
        found = rank(outputs, strides=strides, options=self.decoding, fill_up=True)
        kept = {**vars(found), "scores": found.scores.where(found.scores >= self.detecting.min_score, -1)}
        return pyramid, Proposals(**kept)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, P, 4) boxes, (B, P) scores, (B, P) classes 1..K, (B, P, K) class scores, then a map for each level."""
        pyramid, found = self.find(image)
        maps = (pyramid[level].float() for level in self.net.detector.roi_heads.pool.strides)
        return found.boxes, found.scores, found.classes + 1, found.class_scores, *maps


class MaskGraph(nn.Module):
    """Maps and (R, 4) boxes to (R, M, M) masks and, where the net rates them, (R,) expected overlaps."""

    def __init__(self, net: CenterMask2) -> None:
        """Of a net in evaluation mode."""
        super().__init__()
        self.heads = net.detector.roi_heads
        self.pool = GridPool(self.heads.pool)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs: the maps, (R, 4) boxes, (R,) images 0..B-1, (R,) classes 1..K, (1,) square px of an image."""
        *maps, boxes, images, classes, image_area = inputs
        pyramid = dict(zip(self.heads.pool.strides, maps, strict=True))
        features = self.pool(pyramid, boxes, images, torch.ones_like(boxes[:, 0]) * image_area)
        drawn = self.heads.draw_pooled(features, classes - 1)
        return (drawn.masks,) if drawn.ious is None else (drawn.masks, drawn.ious)


def _take(rows: Tensor, places: Tensor) -> Tensor:
    """(B, D, N) of (B, P, N) at (B, D)."""
    return rows.gather(1, places.unsqueeze(2).expand(-1, -1, rows.shape[2]))


def _spread(values: Tensor, at: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, D, ...) zeros with the (R, ...) values at their flat places."""
    rest = values.shape[1:]
    return values.new_zeros(size[0] * size[1], *rest).index_copy(0, at, values).unflatten(0, size)
