"""A small Swin-UNet that has learned a little, once for all tests of the net."""

import pytest
import torch

from cellvision.data.augment import RandomCrop
from cellvision.data.datamodule import CellDataModule
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.models.build import build_model

STEPS = 60


@pytest.fixture(scope="session")
def swin_data():
    """Generated fields of five to nine cells, half of them to train with, in batches of four crops."""
    data = CellDataModule(
        datasets={"all": SyntheticLiveDead(fields=8, height=96, width=96, cells=(5, 9))},
        fractions={"train": 0.5, "val": 0.5},
        augment={"crop": RandomCrop(size=64)},
        batch_size=4,
        draws_per_epoch=4 * STEPS,
        workers=0,
    )
    data.setup()
    return data


@pytest.fixture(scope="session")
def swin_run(swin_data):
    """The net, for evaluation, and its loss at each step."""
    torch.manual_seed(0)
    net = build_model(
        name="swin_unet",
        kind="viability",
        in_channels=3,
        classes=swin_data.classes,
        widths=(16, 32),
        depths=(2, 2),
        heads=(1, 2),
    )
    net.set_statistics(swin_data.stats)
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=3e-3)
    losses = []
    for batch in swin_data.collect_batches(STEPS, epoch=0):
        total = sum(net.losses(batch.images, batch.targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return net.eval().requires_grad_(False), losses
