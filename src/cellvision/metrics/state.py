"""The scores as torchmetrics classes, so that training gathers them over batches and over processes.

``compute`` returns a flat dict of floats. An undefined score (no cell of that class anywhere, say) is absent and never
NaN: NaN is not JSON, and it stops early stopping and checkpoint selection in a way that is hard to trace.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from cellvision.errors import ConfigError, DataError, ShapeError, explain
from cellvision.metrics.cells import FieldScore, compute_cell_scores, compute_field_score, has_viability
from cellvision.metrics.semantic import compute_binned_auroc, compute_semantic_scores, drop_undefined
from cellvision.metrics.viability import FieldViability, compute_field_viability, compute_viability_scores
from cellvision.types import IGNORE

_BINS = 1024


class PixelMetrics(Metric):
    """Pixel scores over all images seen: "pixel/iou_<class>", "pixel/miou", "pixel/accuracy", and so on.

    Also "pixel/auroc_foreground" (1 - P(background) on all known pixels) and, with the classes live and dead,
    "pixel/auroc_live_dead" (P(live) / (P(live) + P(dead)) on the true cells' pixels). Both come from 1,024 score bins:
    keeping every pixel's score would fill the memory.

    Example:
        >>> metrics = PixelMetrics(("background", "nucleus"))
        >>> metrics.update(torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]), torch.tensor([[[0, 1]]]))
        >>> scores = metrics.compute()
        >>> scores["pixel/miou"], scores["pixel/auroc_foreground"]
        (1.0, 1.0)
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor
    foreground_scores: Tensor
    live_scores: Tensor

    def __init__(self, classes: tuple[str, ...], **kwargs: Any) -> None:
        """Start at zero.

        Args:
            classes: names, background first, at least two.
            **kwargs: passed on to torchmetrics, e.g. dist_sync_on_step.
        """
        super().__init__(**kwargs)
        self.classes = _check_classes(classes)
        self.add_state("confusion", torch.zeros(len(classes), len(classes), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("foreground_scores", torch.zeros(2, _BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("live_scores", torch.zeros(2, _BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor | np.ndarray, class_map: Tensor | np.ndarray) -> None:
        """Count a batch; the predicted class of a pixel is the most probable one.

        Args:
            probabilities: (B, K, H, W) in 0..1.
            class_map: (B, H, W) integers, 0..K-1 or IGNORE.

        Raises:
            ShapeError: the shapes do not fit together or K is another number of classes.
            DataError: a true class is out of range, or a probability is NaN.
        """
        scores = torch.as_tensor(probabilities, device=self.confusion.device).detach().float()
        truth = torch.as_tensor(class_map, device=self.confusion.device).long()
        size = len(self.classes)
        _check_batch(scores, truth, size)
        known = truth != IGNORE
        true = truth[known]
        flat = scores.movedim(1, -1)[known]
        self.confusion += torch.bincount(true * size + flat.argmax(1), minlength=size * size).reshape(size, size)
        self.foreground_scores += _count_scores(1.0 - flat[:, 0], true > 0)
        if has_viability(self.classes):
            live, dead = self.classes.index("live"), self.classes.index("dead")
            cell, is_live = flat[true > 0], true[true > 0] == live
            share = cell[:, live] / (cell[:, live] + cell[:, dead]).clamp_min(1e-12)
            self.live_scores += _count_scores(share, is_live)

    def compute(self) -> dict[str, float]:
        """Flat scores; see the class."""
        scores = compute_semantic_scores(self.confusion.cpu().numpy()).to_dict(self.classes)
        return scores | drop_undefined(
            {
                "pixel/auroc_foreground": compute_binned_auroc(self.foreground_scores.cpu().numpy()),
                "pixel/auroc_live_dead": compute_binned_auroc(self.live_scores.cpu().numpy()),
            }
        )


class CellMetrics(Metric):
    """Cell and field scores over all fields seen: "cell/f1", "cell/live_dead_f1", "field/viability_error_pp", ...

    See `CellScores` for what each means and which is the headline. "field/..." needs the classes live and dead.

    Example:
        >>> label_image = np.array([[1, 1, 0, 2, 2]])
        >>> metrics = CellMetrics(("background", "live", "dead"))
        >>> classes = np.array([1, 2])
        >>> metrics.update(label_image, classes, np.array([0.9, 0.2]), label_image, classes)
        >>> scores = metrics.compute()
        >>> scores["cell/f1"], scores["cell/live_dead_auroc"], scores["field/viability_error_pp"]
        (1.0, 1.0, 0.0)
    """

    full_state_update = False
    higher_is_better = True
    confusion: Tensor
    iou_sum: Tensor
    p_live: list[Tensor]
    is_live: list[Tensor]
    field_counts: list[Tensor]

    def __init__(self, classes: tuple[str, ...], *, iou: float = 0.5, **kwargs: Any) -> None:
        """Start at zero.

        Args:
            classes: names, background first, at least two.
            iou: smallest intersection over union that counts as found, in (0, 1].
            **kwargs: passed on to torchmetrics, e.g. dist_sync_on_step.
        """
        super().__init__(**kwargs)
        self.classes = _check_classes(classes)
        self.iou = iou
        self.add_state("confusion", torch.zeros(len(classes), len(classes), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("iou_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("p_live", "is_live", "field_counts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        pred_label_image: Tensor | np.ndarray,
        pred_classes: Tensor | np.ndarray,
        p_live: Tensor | np.ndarray | None,
        true_label_image: Tensor | np.ndarray,
        true_cell_classes: Tensor | np.ndarray,
    ) -> None:
        """Count one field.

        Args:
            pred_label_image: (H, W) integers, 0 = background.
            pred_classes: (N,) integers; entry i is the class of label i + 1.
            p_live: (N,) in 0..1, or None where the net gives none.
            true_label_image: (H, W) integers, 0 = background.
            true_cell_classes: (N,) integers, in 1..K-1 or IGNORE.

        Raises:
            ShapeError, DataError, ConfigError: as `compute_field_score`.
        """
        field = compute_field_score(
            pred_label_image=_to_numpy(pred_label_image),
            pred_classes=_to_numpy(pred_classes),
            true_label_image=_to_numpy(true_label_image),
            true_classes=_to_numpy(true_cell_classes),
            classes=self.classes,
            p_live=None if p_live is None else _to_numpy(p_live),
            iou=self.iou,
        )
        device = self.confusion.device
        self.confusion += torch.as_tensor(field.confusion, device=device)
        self.iou_sum += field.iou_sum
        # Empty tensors are appended too: a process whose list stayed empty would not join the gathering, and hang it.
        self.p_live.append(torch.as_tensor(field.p_live, device=device))
        self.is_live.append(torch.as_tensor(field.is_live, device=device))
        counts = field.count_viability(self.classes) if has_viability(self.classes) else (0, 0, 0, 0)
        self.field_counts.append(torch.tensor([counts], device=device))

    def compute(self) -> dict[str, float]:
        """Flat scores; see the class."""
        total = FieldScore(
            confusion=self.confusion.cpu().numpy(),
            iou_sum=float(self.iou_sum),
            p_live=_join(self.p_live).numpy(),
            is_live=_join(self.is_live).numpy(),
        )
        scores = compute_cell_scores(total).to_dict(self.classes)
        if not has_viability(self.classes):
            return scores
        return scores | compute_viability_scores([_to_viability(row) for row in _join(self.field_counts)]).to_dict()


def _check_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(classes) < 2:
        raise ConfigError(
            explain(got=f"classes {classes}", need="background and at least one more", hint='("background", "nucleus")')
        )
    return tuple(classes)


def _check_batch(scores: Tensor, truth: Tensor, size: int) -> None:
    if scores.ndim != 4 or scores.shape[1] != size or truth.shape != (scores.shape[0], *scores.shape[2:]):
        raise ShapeError(
            explain(
                got=f"probabilities {tuple(scores.shape)} and a class map {tuple(truth.shape)}",
                need=f"(B, {size}, H, W) and (B, H, W)",
                hint="give both for the same batch",
            )
        )
    if torch.isnan(scores).any():
        raise DataError(explain(got="probabilities with NaN", need="numbers in 0..1", hint="look at the training loss"))
    if bool(((truth < 0) | ((truth >= size) & (truth != IGNORE))).any()):
        raise DataError(
            explain(
                got=f"true classes up to {int(truth.max())}",
                need=f"0 to {size - 1}, or {IGNORE}",
                hint="check that the classes are those of the data set",
            )
        )


def _count_scores(scores: Tensor, positive: Tensor) -> Tensor:
    """(2, bins) int64 counts of scores in 0..1: row 0 negatives, row 1 positives."""
    level = (scores * _BINS).long().clamp(0, _BINS - 1)
    return torch.bincount(positive.long() * _BINS + level, minlength=2 * _BINS).reshape(2, _BINS)


def _to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _join(parts: list[Tensor] | Tensor) -> Tensor:
    # A tensor after processes were synchronised, a list before, an empty list where nothing was seen.
    if isinstance(parts, list) and not parts:
        return torch.zeros(0)
    return dim_zero_cat(parts).cpu()


def _to_viability(counts: Tensor) -> FieldViability:
    true_live, true_dead, pred_live, pred_dead = counts.tolist()
    return compute_field_viability(true_live=true_live, true_dead=true_dead, pred_live=pred_live, pred_dead=pred_dead)
