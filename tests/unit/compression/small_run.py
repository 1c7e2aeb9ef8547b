"""A tiny net led through steps of compression on a few small fields."""

import torch
from lightning.pytorch import Trainer

from cellvision.bundle import Splitting
from cellvision.compression.callback import Compression
from cellvision.data.augment import RandomCrop
from cellvision.data.datamodule import CellDataModule
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.models.build import build_model
from cellvision.training.callbacks import BestCheckpoint, SameNet
from cellvision.training.checkpoint import AtomicCheckpointIO, load_net
from cellvision.training.optim import Optim
from cellvision.training.task import SegmentationTask


def build_data() -> CellDataModule:
    data = CellDataModule(
        datasets={"all": SyntheticLiveDead(fields=8, height=64, width=64, cells=(3, 5))},
        fractions={"train": 0.5, "val": 0.5},
        augment={"crop": RandomCrop(size=32)},
        batch_size=2,
        draws_per_epoch=4,
        workers=0,
    )
    data.setup()
    return data


def fit(folder, steps, *callbacks, base_epochs=0, measure_ms=None, start=None, resume=None, **settings):
    """A run of these steps; on with the net of a checkpoint ``start``, or with the whole run from ``resume``."""
    torch.manual_seed(0)
    data = build_data()
    compression = Compression(steps, folder=folder, base_epochs=base_epochs, measure_ms=measure_ms)
    net = build_model(name="unet", in_channels=3, classes=data.classes, kind="viability", widths=[8, 16])
    net, record = (net, None) if start is None else load_net(start)
    given = {"splitting": Splitting(), "phases": compression.phases, "record": record}
    task = SegmentationTask(net=net.train(), optim=Optim(), **given)
    best = BestCheckpoint(folder=folder / "checkpoints", monitor="val/pixel/miou")
    trainer = Trainer(
        **{
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
            **settings,
        }
    )
    trainer.fit(task, datamodule=data, ckpt_path=resume)
    return task, trainer, best
