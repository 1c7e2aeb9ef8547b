"""Every registered net through every step of compression: trained, saved, rebuilt from its checkpoint, exported."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from cellvision.bundle import load_manifest
from cellvision.compression.distill.step import Distill
from cellvision.compression.prune.step import Prune
from cellvision.compression.qat.step import Quantize
from cellvision.export.writer import export_checkpoint
from cellvision.models.build import list_models
from cellvision.runtime.session import open_session
from cellvision.training.checkpoint import load_net
from compressed_fit import build_data, fit

pytestmark = pytest.mark.filterwarnings("ignore")

# Few levels: each is in a graph once more, and a graph takes as long to write as it has parts.
LEVELS = {"levels": [3, 4], "roi_levels": [3, 4], "top_levels": 0, "assigning": {"sizes_of_interest": [32]}}
HEADS = {"fpn_channels": 32, "class_convs": 1, "box_convs": 1, "mask_convs": 1, "maskiou_convs": 1}
CELLS = {"name": "centermask2", "decoding": {"score_threshold": 0.0, "post_nms": 20}, **HEADS, **LEVELS}
NETS = {
    "unet": {"name": "unet", "kind": "viability", "widths": (8, 16, 16)},
    "unet with an encoder": {"name": "unet", "kind": "semantic", "widths": (8,) * 4, "encoder": "resnet10t"},
    "swin_unet": {"name": "swin_unet", "kind": "viability", "widths": (8, 16), "depths": (1, 2), "heads": (1, 2)},
    "centermask2": {**CELLS, "backbone": "vovnet19_slim_dw"},
    "centermask2 with resnet": {
        **CELLS,
        "backbone": "resnet18",
        "norm": "batch",
        "mask_iou": False,
        "top_levels": 1,
        "assigning": {"sizes_of_interest": [16, 32]},
    },
}
STEPS = ("prune", "distill", "quantize")
WITHOUT = {"detectron2"}
"""Nets whose layers are another library's, which refuse each step in one sentence: see test_widths.py."""


def test_every_registered_net_is_here():
    assert {net["name"] for net in NETS.values()} | WITHOUT == set(list_models())


class Keep(Callback):
    """What the net says of an image at the beginning and the end of each epoch, as its checkpoint should too."""

    def __init__(self, image):
        self.image, self.begun, self.said, self.sizes, self.moved = image, [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.begun.append(say(pl_module.net, self.image))
            self.weights = [value.detach().clone() for value in pl_module.net.parameters()]

    def on_train_epoch_end(self, trainer, pl_module):
        pairs = zip(pl_module.net.parameters(), self.weights, strict=True)
        self.moved.append(any(not torch.equal(now, before) for now, before in pairs))
        self.said.append(say(pl_module.net, self.image))
        self.sizes.append(sum(value.numel() for value in pl_module.net.parameters()))


@torch.no_grad()
def say(net, image):
    was_training = net.training
    found = {name: value.clone() for name, value in net.eval()(image).items()}
    net.train(was_training)
    return found


@pytest.fixture(params=NETS.values(), ids=NETS, scope="module")
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = build_data(fields=6, crop=64)
    steps = [
        Prune(epochs=1, macs=0.7, batches=1),
        Distill(epochs=1),
        Quantize(epochs=1, when="always", calibration_batches=1, freeze_epochs=1),
    ]
    keep = Keep(torch.from_numpy(data.collect_held_out(1)[0].image[None].astype(np.float32)))
    # A map net that has learned nothing is as sure of one class as of another, and says either when it is rounded.
    base_epochs = 1 if request.param["name"] == "centermask2" else 8
    fit(folder, steps, keep, data=data, net=request.param, base_epochs=base_epochs)
    return folder, data, keep


def test_each_step_is_trained_saved_and_rebuilt(run):
    folder, _, keep = run
    before, *after = keep.sizes[-4:]
    assert after[0] < before
    assert after[0] == after[1] == after[2]
    assert all(keep.moved)
    for epoch, name in enumerate(STEPS, start=1):
        net, record = load_net(folder / "checkpoints" / f"{name}.ckpt")
        assert [each["step"] for each in record.recipe] == list(STEPS[:epoch])
        again = say(net, keep.image)
        assert record.recipe[0]["macs"] == pytest.approx(0.7, abs=0.05)
        # A net that rounds may be best before it was trained so.
        best = [keep.said[-4:][epoch], *([keep.begun[-1]] if name == "quantize" else [])]
        assert any(all(torch.equal(value, again[key]) for key, value in said.items()) for said in best), name


def test_the_nets_of_all_steps_are_exported_and_agree_with_their_graphs(run, tmp_path, request):
    """The export itself compares every output with the net, and fails where they differ."""
    folder, data, _ = run
    # Another backbone or encoder is cut and taught in the same way: the graph of its last step is enough.
    names = STEPS[-1:] if " with " in request.node.callspec.id else STEPS
    for name in names:
        bundle = tmp_path / name
        export_checkpoint(folder / "checkpoints" / f"{name}.ckpt", bundle, samples=data.collect_held_out(2))
        manifest = load_manifest(bundle)
        assert [each["step"] for each in manifest.recipe] == list(STEPS[: STEPS.index(name) + 1])
        assert manifest.graphs[0].precision == ("int8" if name == "quantize" else "fp32")
        assert open_session(bundle) is not None
