"""A compression run without training: checkpoints of a net, of the same pruned, and of a smaller one."""

import numpy as np
import torch

from cellvision.bundle import Channel, Splitting
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.export.gate.found import open_net
from cellvision.models.build import build_model
from cellvision.models.structure.widths import read_widths
from cellvision.training.checkpoint import AtomicCheckpointIO
from cellvision.training.net_record import RECORD_KEY, NetRecord
from cellvision.types import DataStats, Sample

CLASSES = ("background", "cell")
SIZE = (96, 80)


def draw_images(count=2, seed=0):
    """(1, H, W) uint8 images of bright blobs."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
    images = []
    for _ in range(count):
        image = rng.normal(40, 4, SIZE)
        for y, x in zip(rng.integers(8, SIZE[0] - 8, 9), rng.integers(8, SIZE[1] - 8, 9), strict=True):
            image += 120 * np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 20)
        images.append(np.clip(image, 0, 255).astype(np.uint8)[None])
    return images


def start(seed=0, **config):
    torch.manual_seed(seed)
    net = build_model(in_channels=1, classes=CLASSES, **config)
    net.set_statistics(DataStats(offset=(50.0,), scale=(30.0,), class_pixels=(9, 1)))
    with torch.no_grad():
        net.train().logits(torch.from_numpy(draw_images(1)[0])[None])  # statistics of the normalisations
    return net.eval()


def prune(net, *, macs):
    """The record of pruning ``net``, which is changed."""
    Pruner(net, torch.from_numpy(draw_images(1)[0])[None], PruneOptions(macs=macs, tolerance=0.2)).step()
    return {"step": "prune", **read_widths(net, build_model(**net.config))}


def save(net, path, *recipe, splitting):
    record = NetRecord(
        net=net.config,
        channels=(Channel(name="stain", role=""),),
        image_dtypes=("uint8",),
        pixel_size_um=0.5,
        splitting=splitting,
        live_threshold=0.5,
        nucleus_margin_px=0,
        fingerprint="abc",
        recipe=recipe,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({RECORD_KEY: record.to_plain(), "state_dict": state}, path)
    return path


def build_samples(net, *, splitting):
    """Fields whose true cells are what the net itself finds: it scores 1."""
    predict = open_net(net, splitting=splitting, live_threshold=0.5)
    samples = []
    for at, image in enumerate(draw_images()):
        empty = {"label_image": np.zeros(SIZE, np.int32), "cell_classes": np.zeros(0, np.int64)}
        cells = predict(Sample(name=f"field_{at}", group="", image=image, **empty)).cells
        assert len(cells) > 0
        truth = {"label_image": cells.label_image, "cell_classes": cells.class_id}
        samples.append(Sample(name=f"field_{at}", group="", image=image, **truth))
    return samples


UNET = {"name": "unet", "widths": (8, 16)}
MAPS = Splitting(method="components", min_area_px=2)
