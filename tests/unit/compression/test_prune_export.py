"""A pruned net becomes a bundle like any other."""

import numpy as np
import torch

from cellvision.bundle import Channel, Splitting
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.export.writer import export_bundle
from cellvision.models.build import build_model
from cellvision.types import DataStats, Sample


def test_the_graph_of_a_pruned_net_agrees_with_it(tmp_path):
    torch.manual_seed(0)
    net = build_model(name="unet", in_channels=1, classes=("background", "cell"), widths=(16, 32, 32), attention="gate")
    net.set_statistics(DataStats(offset=(50.0,), scale=(30.0,), class_pixels=(9, 1)))
    image = np.random.default_rng(0).integers(0, 200, (1, 96, 80)).astype(np.uint8)
    net.train().logits(torch.from_numpy(image).unsqueeze(0))
    whole = sum(parameter.numel() for parameter in net.parameters())
    pruned = Pruner(net, torch.from_numpy(image).unsqueeze(0), PruneOptions(macs=0.3)).step()
    sample = Sample(
        name="field",
        group="field",
        image=image,
        label_image=np.zeros((96, 80), np.int32),
        cell_classes=np.zeros(0, int),
    )
    manifest = export_bundle(
        net.eval(),
        tmp_path / "bundle",
        samples=[sample],
        channels=(Channel(name="stain", role=""),),
        image_dtypes=("uint8",),
        pixel_size_um=None,
        splitting=Splitting(method="components"),
        accuracy={},
        provenance={},
    )
    assert manifest.parity["max_difference"] < 1e-4
    size = sum(path.stat().st_size for path in (tmp_path / "bundle").glob("*.onnx"))
    assert size < 4 * whole * (pruned.parameters + 0.1) + 100_000
