"""A run as the step of distillation sees it, small nets and a batch."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cellvision.bundle import Channel, Splitting
from cellvision.models.build import build_model
from cellvision.training.checkpoint import AtomicCheckpointIO
from cellvision.training.net_record import RECORD_KEY, NetRecord
from cellvision.training.phases import Phase
from cellvision.types import Batch, DataStats, Targets

CELLS = ("background", "cell")
SMALL = {"fpn_channels": 32, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1}
NETS = {
    "unet": {"name": "unet", "widths": (8, 16, 16)},
    "swin_unet": {"name": "swin_unet", "widths": (8, 16), "depths": (1, 2), "heads": (1, 2)},
    "centermask2": {"name": "centermask2", "backbone": "vovnet19_slim_dw", **SMALL},
}


class FakeRun:
    """What the step uses of a run, without trainer and data."""

    is_lead = True

    def __init__(self, net, *, teacher, phases=(), channels=("stain",)):
        self.net, self.teacher, self.lines = net, teacher, []
        self.data = SimpleNamespace(channels=tuple(Channel(name=name) for name in channels), image_dtypes=("float32",))
        self.losses = {}
        self.task = SimpleNamespace(
            phases=phases,
            current_epoch=0,
            helpers=nn.ModuleDict(),
            add_loss=self.losses.__setitem__,
            record=SimpleNamespace(recipe=()),
        )

    def say(self, line):
        self.lines.append(line)

    def broadcast(self, value):
        return value

    def write_record(self, record):
        kept = (each for each in self.task.record.recipe if each["step"] != record["step"])
        self.task.record.recipe = (*kept, record)

    def learn(self, batch, *, steps=25):
        """The teacher's losses by term, before and after some steps by them alone."""
        optimizer = torch.optim.Adam([*self.net.parameters(), *self.task.helpers.parameters()], lr=0.01)
        first = {name: value.item() for name, value in self.train(batch)[0].items()}
        for _ in range(steps):
            optimizer.zero_grad()
            sum(self.train(batch)[0].values()).backward()
            optimizer.step()
        return first, {name: value.item() for name, value in self.train(batch)[0].items()}

    def train(self, batch):
        """The teacher's losses of a training step, by term, and the sum of the net's own."""
        own = sum(self.net.losses(batch.images, batch.targets).values())
        return {name.removeprefix("distill_"): loss(self.net, batch) for name, loss in self.losses.items()}, own


def build_net(name="unet", *, seed=0, **arguments):
    torch.manual_seed(seed)
    net = build_model(**{"in_channels": 1, "classes": CELLS, **NETS[name], **arguments})
    channels = net.spec.in_channels
    pixels = (1,) * len(net.spec.classes)
    net.set_statistics(DataStats(offset=(20.0,) * channels, scale=(50.0,) * channels, class_pixels=pixels))
    return net


def save_net(net, path, *, channels=("stain",), recipe=()):
    """A checkpoint of a net, such as training writes."""
    record = NetRecord(
        net=net.config,
        channels=tuple(Channel(name=name) for name in channels),
        image_dtypes=("float32", "uint8"),
        pixel_size_um=None,
        splitting=Splitting(),
        live_threshold=0.5,
        nucleus_margin_px=0,
        fingerprint="abc",
        recipe=recipe,
    )
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({RECORD_KEY: record.to_plain(), "state_dict": state}, path)
    return path


def build_batch(*, channels=1, side=64, classes=1, seed=0, sizes=None):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, side, side, dtype=torch.int32)
    labels[:, 4:20, 4:20], labels[:, 4:20, 20:30], labels[0, 34:60, 30:58] = 1, 2, 3
    cells = torch.arange(3) % classes + 1
    class_map = torch.cat([torch.zeros(1, dtype=torch.int64), cells])[labels.long()]
    images = labels.gt(0)[:, None] * 100.0 + 20 * torch.rand(2, channels, side, side, generator=generator)
    targets = Targets(
        class_map=class_map,
        distance=(labels > 0).float(),
        label_image=labels,
        cell_classes=(cells, cells),
        sizes=sizes,
    )
    return Batch(images=images, targets=targets, names=("a", "b"))


PHASES = tuple(Phase(name=name, epochs=2) for name in ("base", "prune", "distill", "quantize"))


@pytest.fixture
def kit():
    """The functions and classes of this file."""
    return SimpleNamespace(
        FakeRun=FakeRun, build_net=build_net, save_net=save_net, build_batch=build_batch, PHASES=PHASES
    )
