"""MixUp and CutMix: pairs of fields of one batch become one, images and targets together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cellvision.data.augment.draws import draw_uniform
from cellvision.errors import ConfigError, DataError, explain
from cellvision.types import IGNORE, Batch, Targets


def mixup(batch: Batch, *, alpha: float, generator: torch.Generator, classes: int) -> Batch:
    """Every image blended with another one of the batch, class probabilities and distance likewise.

    One share, drawn from Beta(alpha, alpha) and at least a half, holds for the whole batch. ``soft_classes`` holds the
    blended classes. A pixel that is IGNORE in either image is IGNORE in ``class_map`` and 0 in all ``soft_classes``,
    for half of its truth is unknown; elsewhere ``class_map``, and everywhere ``label_image`` and ``cell_classes``,
    are those of the image with the larger share, since cells cannot be blended.

    Args:
        batch: raw counts and targets, see ``types``.
        alpha: above 0; small blends little, 1 makes every share equally likely.
        generator: source of all chance; on the CPU.
        classes: K, background included.
    """
    share = _draw_share(generator, alpha)
    share = max(share, 1 - share)
    partner = _draw_partners(len(batch.names), generator)
    targets = batch.targets
    soft = _to_soft(targets, classes)
    unknown = (targets.class_map == IGNORE) | (targets.class_map[partner] == IGNORE)
    blended = torch.lerp(soft[partner], soft, share).masked_fill(unknown[:, None], 0.0)
    return replace(
        batch,
        images=torch.lerp(batch.images[partner], batch.images, share),
        targets=replace(
            targets,
            class_map=targets.class_map.masked_fill(unknown, IGNORE),
            distance=torch.lerp(targets.distance[partner], targets.distance, share),
            soft_classes=blended,
        ),
    )


def cutmix(batch: Batch, *, alpha: float, generator: torch.Generator) -> Batch:
    """Every image with one rectangle pasted from another one of the batch, targets and cells included.

    The rectangle is the same for the whole batch; its share of the area is drawn from Beta(alpha, alpha). Labels in it
    are numbered on from those of the receiving image, and its cell classes appended, so that every label still has its
    class. A cell cut by the rectangle keeps the distances of the whole cell: what is left is a part of it, not a
    smaller cell with a core of its own.

    Args:
        batch: raw counts and targets, see ``types``.
        alpha: above 0.
        generator: source of all chance; on the CPU.
    """
    height, width = batch.images.shape[-2:]
    inside = _draw_rectangle(generator, alpha, height, width)
    partner = _draw_partners(len(batch.names), generator)
    targets = batch.targets
    counts = torch.tensor([len(c) for c in targets.cell_classes], dtype=torch.int32)
    shift = counts.to(targets.label_image.device)[:, None, None]
    theirs = targets.label_image[partner]
    soft = targets.soft_classes
    return replace(
        batch,
        images=_paste(batch.images, batch.images[partner], inside),
        targets=Targets(
            class_map=_paste(targets.class_map, targets.class_map[partner], inside),
            distance=_paste(targets.distance, targets.distance[partner], inside),
            label_image=_paste(targets.label_image, torch.where(theirs > 0, theirs + shift, theirs), inside),
            cell_classes=tuple(
                torch.cat([own, targets.cell_classes[other]])
                for own, other in zip(targets.cell_classes, partner.tolist(), strict=True)
            ),
            soft_classes=None if soft is None else _paste(soft, soft[partner], inside),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """MixUp, CutMix or neither, chosen anew for every batch.

    Attributes:
        mixup_probability, cutmix_probability: of each; what is missing to 1 leaves a batch as it is.
        alpha: of the Beta distribution of the shares, above 0.

    Raises:
        ConfigError: probabilities below 0 or above 1 together, or alpha not above 0.
    """

    mixup_probability: float = 0.0
    cutmix_probability: float = 0.0
    alpha: float = 0.4

    def __post_init__(self) -> None:
        mixup_share, cutmix_share = self.mixup_probability, self.cutmix_probability
        if not (mixup_share >= 0 and cutmix_share >= 0 and mixup_share + cutmix_share <= 1):
            raise ConfigError(
                explain(
                    got=f"mixup_probability={mixup_share}, cutmix_probability={cutmix_share}",
                    need="both 0 or more, and at most 1 together",
                    hint="mixup_probability=0.2, cutmix_probability=0.2",
                )
            )
        if not self.alpha > 0:
            raise ConfigError(explain(got=f"mixing alpha={self.alpha}", need="a number above 0", hint="alpha=0.4"))

    def __call__(self, batch: Batch, generator: torch.Generator, *, classes: int) -> Batch:
        """The mixed batch, or the same one; ``classes`` is K, background included.

        Raises:
            DataError: the images of the batch are of several sizes, so that half of a mixture would be padding.
        """
        if batch.targets.sizes is not None:
            sizes = " and ".join(f"{height}x{width}" for height, width in sorted(set(batch.targets.sizes)))
            hint = "mixing=null"
            raise DataError(explain(got=f"mixing of images of {sizes} px", need="images of one size", hint=hint))
        chance = draw_uniform(generator, 0.0, 1.0)
        if chance < self.mixup_probability:
            return mixup(batch, alpha=self.alpha, generator=generator, classes=classes)
        if chance < self.mixup_probability + self.cutmix_probability:
            return cutmix(batch, alpha=self.alpha, generator=generator)
        return batch


def _draw_share(generator: torch.Generator, alpha: float) -> float:
    # torch draws Beta from its global generator only; numpy, seeded from ours, does not.
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha))


def _draw_partners(images: int, generator: torch.Generator) -> Tensor:
    """(B,) int64, for each image another one, in a random cycle; itself where it is alone."""
    order = torch.randperm(images, generator=generator)
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _draw_rectangle(generator: torch.Generator, alpha: float, height: int, width: int) -> tuple[slice, slice]:
    edge = _draw_share(generator, alpha) ** 0.5
    spans = []
    for length in (height, width):
        size = round(edge * length)
        start = int(torch.randint(length - size + 1, (), generator=generator))
        spans.append(slice(start, start + size))
    return spans[0], spans[1]


def _paste(own: Tensor, other: Tensor, inside: tuple[slice, slice]) -> Tensor:
    pasted = own.clone()
    pasted[(..., *inside)] = other[(..., *inside)]
    return pasted


def _to_soft(targets: Targets, classes: int) -> Tensor:
    """(B, K, H, W) float32 class probabilities; 0 where the class is IGNORE."""
    if targets.soft_classes is not None:
        return targets.soft_classes
    index = torch.arange(classes, device=targets.class_map.device)[None, :, None, None]
    return (targets.class_map[:, None] == index).float()
