"""From predictions to boxes: the best candidates of every level, without doubles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cellvision.models.centermask2.fcos.head import FcosOutputs
from cellvision.models.centermask2.options import FcosDecoding
from cellvision.ops.boxes import locate, to_boxes
from cellvision.ops.nms import suppress, suppress_softly
from cellvision.ops.topk import find_best


@dataclass(frozen=True, kw_only=True, eq=False)
class Proposals:
    """Boxes in which cells are expected, best first; K cell classes.

    Attributes:
        boxes: (D, 4) float32 px of the padded image; a cell cut by the border has a box that reaches beyond it.
        scores: (D,) float32 in 0..1: sqrt(class probability * centre-ness).
        classes: (D,) int64, 0..K-1.
        locations: (D, 2) float32 x, y in px of the place that predicted the box.
        class_scores: (D, K) float32 in 0..1: probability of each class at that place; they need not sum to 1.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    locations: Tensor
    class_scores: Tensor

    def __getitem__(self, index: int | Tensor) -> Proposals:
        """Those of (D',) int64 or (D,) bool ``index``."""
        return Proposals(**{name: values[index] for name, values in vars(self).items()})


def decode(outputs: FcosOutputs, *, strides: Sequence[int], options: FcosDecoding) -> list[Proposals]:
    """The boxes of every image.

    At most ``post_nms`` boxes are returned; the published code lets those as good as the last one pass as well.

    Args:
        outputs: of FcosHead.
        strides: px, one per level.
        options: see FcosDecoding.
    """
    batch = rank(outputs, strides=strides, options=options)
    return [_select(batch[image], options) for image in range(len(batch.scores))]


def rank(outputs: FcosOutputs, *, strides: Sequence[int], options: FcosDecoding, fill_up: bool = False) -> Proposals:
    """The candidates of every image before doubles are suppressed: fields (B, P, ...), the best of every level.

    P depends on the size of the maps alone, not on what is found, which exporters need. Places for which there is no
    candidate have score -1.

    Args:
        outputs: of FcosHead.
        strides: px, one per level.
        options: see FcosDecoding.
        fill_up: have ``options.candidates`` places for each level, whatever its map has: P is one number.
    """
    levels = [
        _rank_level(class_logits, ltrb, centreness_logits, stride=stride, options=options, fill_up=fill_up)
        for class_logits, ltrb, centreness_logits, stride in zip(
            outputs.class_logits, outputs.ltrb, outputs.centreness_logits, strides, strict=True
        )
    ]
    return Proposals(**{name: torch.cat([vars(one)[name] for one in levels], dim=1) for name in vars(levels[0])})


def _rank_level(
    class_logits: Tensor,
    ltrb: Tensor,
    centreness_logits: Tensor,
    *,
    stride: int,
    options: FcosDecoding,
    fill_up: bool,
) -> Proposals:
    """The (B, k, ...) best candidates of a level; score -1 where fewer than k are above the threshold."""
    probabilities = _to_rows(class_logits).sigmoid()
    combined = probabilities * _to_rows(centreness_logits).sigmoid()
    compared = combined if options.threshold_with_centreness else probabilities
    candidates = combined.where(compared > options.score_threshold, -1).flatten(1)
    if fill_up:
        best, index = find_best(F.pad(candidates, (0, options.candidates), value=-1), options.candidates)
    else:
        best, index = candidates.topk(min(options.candidates, candidates.shape[1]))
    class_count = class_logits.shape[1]
    height, width = class_logits.shape[-2:]
    places = (index // class_count).clamp_max(height * width - 1)
    locations = locate(height, width, stride, device=class_logits.device)[places]
    distances = _take(_to_rows(ltrb), places) * stride
    return Proposals(
        boxes=to_boxes(locations, distances),
        scores=best.clamp_min(0).sqrt().where(best >= 0, -1),
        classes=index % class_count,
        locations=locations,
        class_scores=_take(probabilities, places),
    )


def _select(candidates: Proposals, options: FcosDecoding) -> Proposals:
    """Of the candidates of one image those that are no doubles, best first."""
    found = candidates[candidates.scores >= 0]
    if options.soft_nms_sigma is None:
        return found[suppress(found.boxes, found.scores, found.classes, iou=options.nms_iou)[: options.post_nms]]
    kept, faded = suppress_softly(
        found.boxes, found.scores, found.classes, sigma=options.soft_nms_sigma, limit=options.post_nms
    )
    return replace(found[kept], scores=faded)[faded >= options.score_threshold]


def _take(rows: Tensor, places: Tensor) -> Tensor:
    """(B, k, C) of (B, places, C) at (B, k); gather and not take_along_dim, which exporters refuse for unknown B."""
    return rows.gather(1, places.unsqueeze(2).expand(-1, -1, rows.shape[2]))


def _to_rows(maps: Tensor) -> Tensor:
    """(B, places, C) float32 of (B, C, H, W)."""
    return maps.float().flatten(2).transpose(1, 2)
