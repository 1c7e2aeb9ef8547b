"""What an instance net found in one image: boxes with scores, classes and small square masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cellvision.errors import ConfigError, ShapeError, explain


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """D detections of one image; row i of each array belongs to detection i. The order means nothing.

    A mask is stretched over its box: its M x M probabilities are samples at the centres of an M x M grid that fills
    the box. Nothing here has the size of the image, so 3000 detections take 10 MB.

    Attributes:
        boxes: (D, 4) float32, left, top, right, bottom in px; pixel (0, 0) covers 0..1 in both directions.
        scores: (D,) float32 in 0..1, that there is a cell of this class in this box.
        mask_scores: (D,) float32, score times predicted IoU of the mask; unbounded, because nothing bounds that
            prediction. None for nets that do not predict it.
        class_id: (D,) int64, 1..K-1; 0 is the background.
        class_scores: (D, K-1) float32 in 0..1, of each class but the background, not summing to 1.
        masks: (D, M, M) float32 in 0..1, probability of the cell.

    Raises:
        ShapeError: the arrays are not of one length, or not of these dimensions.

    Example:
        >>> one = Detections(boxes=np.array([[0, 0, 9, 9]], np.float32), scores=np.array([0.9], np.float32),
        ...     mask_scores=None, class_id=np.array([1]), class_scores=np.array([[0.9]], np.float32),
        ...     masks=np.ones((1, 28, 28), np.float32))
        >>> one.rescale(from_shape=(10, 10), to_shape=(10, 5)).boxes.tolist()
        [[0.0, 0.0, 4.5, 9.0]]
    """

    boxes: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray | None
    class_id: np.ndarray
    class_scores: np.ndarray
    masks: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.scores)
        is_square = self.masks.ndim == 3 and self.masks.shape[1] == self.masks.shape[2]
        mask_scores = self.scores if self.mask_scores is None else self.mask_scores
        one_each = [(count,)] * 3 == [self.scores.shape, mask_scores.shape, self.class_id.shape]
        classes_fit = self.class_scores.ndim == 2 and len(self.class_scores) == count
        if not (one_each and classes_fit and self.boxes.shape == (count, 4) and is_square and len(self.masks) == count):
            got = {name: getattr(value, "shape", None) for name, value in vars(self).items()}
            raise ShapeError(
                explain(
                    got=f"detections of shapes {', '.join(f'{name} {shape}' for name, shape in got.items())}",
                    need="(D, 4) boxes, (D,) scores and class_id, (D, K-1) class_scores, (D, M, M) masks of one D",
                    hint="np.zeros((0, 4)) and so on for an image without detections",
                )
            )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def rank_scores(self) -> np.ndarray:
        """(D,) float32 in 0..1 by which detections compete: the mask score where there is one, cut to 0..1."""
        return self.scores if self.mask_scores is None else np.clip(self.mask_scores, 0.0, 1.0)

    def take(self, index: np.ndarray) -> Detections:
        """The detections at ``index``, (n,) integers or (D,) bool."""
        rows: dict[str, Any] = {name: None if value is None else value[index] for name, value in vars(self).items()}
        return Detections(**rows)

    def rescale(self, *, from_shape: tuple[int, int], to_shape: tuple[int, int]) -> Detections:
        """The same detections in an image of another size, boxes cut at its edges; those with no box left are dropped.

        The mask of a box that is cut is stretched over what remains of it. That squeezes it a little, but is what
        published weights were scored with.

        Args:
            from_shape: (h, w) px of the net's input that shows image, padding left out.
            to_shape: (H, W) px of the image that masks are wanted for.

        Raises:
            ConfigError: a height or width is not above 0.
        """
        if min(*from_shape, *to_shape) <= 0:
            raise ConfigError(
                explain(got=f"rescaling from {from_shape} to {to_shape} px", need="sizes above 0", hint="(256, 320)")
            )
        factors = np.array([new / old for new, old in zip(to_shape, from_shape, strict=True)], np.float32)
        limits = np.array(to_shape[::-1] * 2, np.float32)
        boxes = np.clip(self.boxes * np.tile(factors[::-1], 2), np.float32(0), limits)
        return replace(self, boxes=boxes).take((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))


def read_detections(outputs: Mapping[str, np.ndarray], at: int) -> Detections:
    """The detections of image ``at`` of a batch, from what an instance net gives; empty places are left out.

    Args:
        outputs: by name: boxes (B, D, 4), scores (B, D), classes (B, D), valid (B, D) bool, class_scores (B, D, K-1),
            masks (B, D, M, M), and mask_scores (B, D) where the net rates its masks.
        at: position in the batch.
    """
    valid = outputs["valid"][at]
    names = {
        "boxes": "boxes",
        "scores": "scores",
        "class_id": "classes",
        "class_scores": "class_scores",
        "masks": "masks",
    }
    rows: dict[str, Any] = {field: outputs[name][at][valid] for field, name in names.items()}
    mask_scores = outputs["mask_scores"][at][valid] if "mask_scores" in outputs else None
    return Detections(mask_scores=mask_scores, **rows)
