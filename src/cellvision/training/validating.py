"""What a task's net finds between two epochs, outside of Lightning's own validation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cellvision.models.base import keep_modes
from cellvision.training.scoring import Scores
from cellvision.training.task import SegmentationTask
from cellvision.types import Batch

SCORED = ("val/pixel/", "val/cell/", "val/field/", "val/instance/", "val/mask/", "val/box/")
"""How names of scores begin that `score_net` measures."""


@torch.no_grad()
def score_net(task: SegmentationTask, batches: Iterable[Batch]) -> dict[str, float]:
    """The validation scores of a task's net as it is, in single precision; nothing is logged.

    Args:
        task: its net keeps its mode.
        batches: whole fields, those of this process.

    Returns:
        Scores over the fields of all processes, named as ``task.monitor``; "val/loss" is not among them.
    """
    scores = Scores(task.net.spec, mask_threshold=task.splitting.foreground_threshold).to(task.device)
    with keep_modes(task.net):
        task.net.eval()
        for batch in batches:
            for field in task.predict_fields(batch.to(task.device)):
                scores.update(field)
    return {f"val/{name}": value for name, value in scores.compute().items()}


@torch.no_grad()
def count_cells(task: SegmentationTask, image: Tensor) -> int | None:
    """How many cells a task's net as it is finds in an image; None for a net that draws no masks of each.

    Args:
        task: its net keeps its mode.
        image: (1, C, H, W) raw counts.
    """
    if task.net.detecting is None:
        return None
    with keep_modes(task.net):
        scores = task.net.eval()(image.to(task.device))["scores"]
    return int((scores > task.splitting.score_threshold).sum())
