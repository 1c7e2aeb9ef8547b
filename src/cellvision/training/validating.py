"""The scores of a net between two epochs, outside of Lightning's own validation."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from cellvision.models.base import keep_modes
from cellvision.training.scoring import Scores
from cellvision.training.task import SegmentationTask
from cellvision.types import Batch


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
