"""A small net trained through steps of compression, as train.py does it, but without Hydra and its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from cellvision.bundle import Splitting
from cellvision.compression.callback import Compression
from cellvision.compression.run import Measure
from cellvision.compression.step import Step
from cellvision.data.augment import RandomCrop
from cellvision.data.datamodule import CellDataModule
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.models.build import build_model
from cellvision.training.callbacks import BestCheckpoint, SameNet
from cellvision.training.checkpoint import AtomicCheckpointIO, load_net
from cellvision.training.optim import Optim
from cellvision.training.task import SegmentationTask

METHODS = {"viability": "distance", "semantic": "components", "instance": "instances"}
UNET = MappingProxyType({"name": "unet", "kind": "viability", "widths": [8, 16]})


def build_data(*, fields: int = 4, crop: int = 32) -> CellDataModule:
    """Fields of three to five cells, half of them to train with, two batches of two an epoch."""
    data = CellDataModule(
        datasets={"all": SyntheticLiveDead(fields=fields, height=64, width=64, cells=(3, 5))},
        fractions={"train": 0.5, "val": 0.5},
        augment={"crop": RandomCrop(size=crop)},
        batch_size=2,
        draws_per_epoch=4,
        workers=0,
    )
    data.setup()
    return data


def fit(
    folder: Path,
    steps: Sequence[Step],
    *callbacks: Callback,
    data: CellDataModule | None = None,
    net: Mapping[str, Any] = UNET,
    start: Path | None = None,
    base_epochs: int = 0,
    resume: Path | None = None,
    measure_ms: Measure | None = None,
    optim: str = "adamw",
    **settings: Any,
) -> tuple[SegmentationTask, Trainer, BestCheckpoint]:
    """Train a net for ``base_epochs``, then through ``steps``, always alike; ``settings`` are of the trainer.

    The net is a fresh one, or that of the checkpoint ``start``; ``resume`` goes on with a whole run.
    """
    torch.manual_seed(0)
    data = build_data() if data is None else data
    compression = Compression(steps, folder=folder, base_epochs=base_epochs, measure_ms=measure_ms)
    built, record = (
        (build_model(in_channels=3, classes=data.classes, **net), None) if start is None else load_net(start)
    )
    monitor = "val/mask/ap" if built.spec.kind == "instance" else "val/pixel/miou"
    splitting = Splitting(method=METHODS[built.spec.kind])
    task = SegmentationTask(
        net=built.train(),
        optim=Optim(name=optim),
        splitting=splitting,
        phases=compression.phases,
        monitor=monitor,
        record=record,
    )
    best = BestCheckpoint(folder=folder / "checkpoints", monitor=monitor)
    given = {
        "accelerator": "cpu",
        "max_epochs": compression.epochs,
        "callbacks": [compression, *callbacks, best, SameNet()],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        "plugins": [AtomicCheckpointIO()],
    }
    trainer = Trainer(**(given | settings))
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return task, trainer, best
