"""A learning rate found by trying: Smith 2017, arXiv 1506.01186, as Lightning implements it."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner

from cellvision.data.datamodule import CellDataModule
from cellvision.errors import ConfigError, explain
from cellvision.training.task import SegmentationTask


def find_lr(trainer: Trainer, task: SegmentationTask, data: CellDataModule) -> float:
    """The rate where the loss fell fastest while it was raised over 100 steps; the net is as before after it.

    Args:
        trainer: one of its own, without callbacks and loggers.
        task: gets the learning rate as its peak.
        data: the training data.

    Raises:
        ConfigError: the loss never fell.
    """
    found = Tuner(trainer).lr_find(task, datamodule=data, attr_name="lr", update_attr=False)
    suggested = found.suggestion() if found else None
    if suggested is None:
        got = "no learning rate at which the loss falls"
        raise ConfigError(explain(got=got, need="one", hint="find_lr=false optim.lr=1e-3"))
    task.lr = suggested
    print(f"learning rate found: {suggested:.2e}")
    return suggested
