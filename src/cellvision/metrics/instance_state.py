"""The scores of instances as a torchmetrics class, so that training gathers them over batches and over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from cellvision.errors import ConfigError, explain
from cellvision.metrics.instances.coco_ap import MAX_DETS, CocoAp, check_max_dets, compute_coco_ap
from cellvision.metrics.instances.field import InstanceField
from cellvision.metrics.instances.overlaps import Overlaps, check_classes, compute_overlaps, join_overlaps
from cellvision.metrics.instances.scores import compute_instance_scores, compute_panoptic_per_class


class InstanceMetrics(Metric):
    """Scores of detected cells over all fields seen.

    "mask/ap", "box/ap50", "mask/afnr", ...: see ``CocoAp.to_dict``; "instance/pq", "instance/aji", ...: see
    ``InstanceScores.to_dict``; with more than one cell class "instance/pq_<class>" and their mean "instance/mpq" too.
    An undefined score (no true cell of that size anywhere, say) is absent and never NaN.

    Of each field only the overlapping pairs are kept, as numpy arrays: 0.2 MB for 1000 cells, whatever the image size.

    Example:
        >>> import numpy as np
        >>> truth = InstanceField.from_label_image(np.array([[1, 1, 0, 2, 2]]), np.array([1, 1]))
        >>> pred = InstanceField.from_label_image(np.array([[1, 1, 0, 0, 0]]), np.array([1]), score=np.array([0.9]))
        >>> metrics = InstanceMetrics(("background", "nucleus"))
        >>> metrics.update(pred, truth)
        >>> scores = metrics.compute()
        >>> scores["mask/ar_100"], scores["instance/precision"], scores["instance/seg"]
        (0.5, 1.0, 0.5)
    """

    full_state_update = False
    higher_is_better = True
    parts: list[tuple[str | None, Overlaps]]

    def __init__(
        self,
        classes: tuple[str, ...],
        *,
        max_dets: tuple[int, ...] = MAX_DETS,
        areas: str = "livecell",
        score_threshold: float = 0.5,
        **kwargs: Any,
    ) -> None:
        """Start at zero.

        Args:
            classes: names, background first, at least two.
            max_dets: predictions per field and class that count for "mask/.." and "box/..", ascending.
            areas: "livecell" or "coco", what is small, medium and large; see ``coco_ap.AREAS``.
            score_threshold: smallest score that counts for "instance/..".
            **kwargs: passed on to torchmetrics, e.g. dist_sync_on_step.

        Raises:
            ConfigError: no class besides the background, or max_dets that do not ascend.
        """
        super().__init__(**kwargs)
        if len(classes) < 2:
            raise ConfigError(
                explain(
                    got=f"classes {classes}", need="background and at least one more", hint='("background", "nucleus")'
                )
            )
        check_max_dets(tuple(max_dets))
        self.classes = tuple(classes)
        self.max_dets = tuple(max_dets)
        self.areas = areas
        self.score_threshold = score_threshold
        self.add_state("parts", [], dist_reduce_fx=None)

    def update(self, pred: InstanceField, truth: InstanceField, name: str | None = None) -> None:
        """Take one field.

        Args:
            pred: with scores.
            truth: of the same image; cells of class IGNORE are ignored.
            name: of the field. Where all have one, a field that was seen twice counts once (samplers that deal fields
                to processes repeat some), and equal scores stand in the order of the names, however many processes.

        Raises:
            ShapeError, DataError: as `compute_overlaps`; DataError also for a class that is none of the classes.
        """
        overlaps = compute_overlaps(pred, truth)
        check_classes(overlaps, self.classes)
        self.parts.append((name, overlaps))

    def compute(self) -> dict[str, float]:
        """Flat scores; see the class."""
        overlaps = self.to_overlaps()
        scores: dict[str, float] = {}
        for kind in ("mask", "box"):
            scores |= self.compute_coco(kind, overlaps).to_dict()
        scores |= compute_instance_scores(overlaps, score_threshold=self.score_threshold).to_dict()
        return scores | compute_panoptic_per_class(overlaps, self.classes, score_threshold=self.score_threshold)

    def compute_coco(self, kind: str, overlaps: Overlaps | None = None) -> CocoAp:
        """Average precision of "mask" or "box", with its curves.

        Args:
            kind: "mask" or "box".
            overlaps: from `to_overlaps`; None takes the fields that this process has seen.
        """
        overlaps = self.to_overlaps() if overlaps is None else overlaps
        return compute_coco_ap(overlaps, kind=kind, classes=self.classes, max_dets=self.max_dets, areas=self.areas)

    def to_overlaps(self) -> Overlaps:
        """All fields that are here in a row: those of all processes inside ``sync_context``, else of this one."""
        named = {name: overlaps for name, overlaps in self.parts if name is not None}
        if len(named) and all(name is not None for name, _ in self.parts):
            return join_overlaps([named[name] for name in sorted(named)])
        return join_overlaps([overlaps for _, overlaps in self.parts])

    # torchmetrics gathers and moves tensors only; the next three do the same for numpy arrays, which have no device.

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(gathered, self.parts, group=group)
        # In turns, as a distributed sampler deals the fields.
        self.parts = [part for part in chain.from_iterable(zip_longest(*gathered)) if part is not None]

    def _apply(self, fn: Callable, exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(fn, exclude_state=(*exclude_state, "parts"))

    def _move_list_states_to_cpu(self) -> None:
        """Nothing to move: the list holds no tensor."""
