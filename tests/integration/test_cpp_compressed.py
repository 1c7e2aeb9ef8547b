"""Nets that were pruned and round give the same cells in C++ as in Python."""

import pytest
import tifffile
import torch

import cpp_build
from cellvision.bundle import Splitting, load_manifest
from cellvision.cli import main
from cellvision.compression.prune.options import PruneOptions
from cellvision.compression.prune.pruner import Pruner
from cellvision.compression.prune.runs import run_layers
from cellvision.compression.qat.plan import plan_rounding
from cellvision.data.augment import RandomCrop
from cellvision.data.datamodule import CellDataModule
from cellvision.data.image_writer import write_image
from cellvision.data.synthetic import SyntheticLiveDead
from cellvision.export.writer import export_bundle
from cellvision.models.build import build_model
from cellvision.models.structure.fake_quant import find_fake_quants, set_fake_quant, set_phase
from cellvision.models.structure.widths import read_widths
from small_detector import DETECTOR

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def built():
    return cpp_build.build()


@pytest.fixture(scope="module")
def data():
    module = CellDataModule(
        datasets={"all": SyntheticLiveDead(fields=8, height=96, width=96, cells=(5, 9))},
        fractions={"train": 0.5, "val": 0.5},
        augment={"crop": RandomCrop(size=96)},
        batch_size=4,
        workers=0,
    )
    module.setup()
    return module


def teach_unet(data):
    """A small net that has learned a little."""
    torch.manual_seed(0)
    net = build_model(name="unet", kind="viability", in_channels=3, classes=data.classes, widths=(8, 16))
    net.set_statistics(data.stats)
    (batch,) = data.collect_batches(1, epoch=0)
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        sum(net.losses(batch.images, batch.targets).values()).backward()
        optimizer.step()
    return net


def make_detector(data):
    """A small net that has learned nothing, but finds boxes with an area and fills them."""
    torch.manual_seed(0)
    decoding = {"score_threshold": 0.0, "post_nms": 400}
    net = build_model(in_channels=3, classes=data.classes, **DETECTOR, decoding=decoding)
    net.set_statistics(data.stats)
    with torch.no_grad():
        net.detector.proposal_generator.fcos_head.bbox_pred.bias.fill_(0.8)
        net.detector.roi_heads.mask_head.predictor.bias.fill_(1.0)
        net.train().logits(data.collect_batches(1, epoch=0)[0].images)  # statistics of the normalisations
    return net


def compress(net, data):
    """The net without half of its channels, with ranges of a batch; and its recipe."""
    images = data.collect_batches(1, epoch=0)[0].images
    Pruner(net.eval(), images[:1], PruneOptions(ratio=0.5)).step()
    recipe = [{"step": "prune", **read_widths(net, build_model(**net.config))}]
    plan = plan_rounding(net, lambda: run_layers(net, images[:1]))
    set_fake_quant(net, plan)
    set_phase(net, observing=True, rounding=False)
    for quant in find_fake_quants(net):
        quant.train()
    with torch.no_grad():
        run_layers(net, images)
    set_phase(net, observing=False, rounding=True)
    return net.eval(), [*recipe, {"step": "quantize", "plan": plan.to_plain()}]


MAPS = Splitting(method="distance", min_area_px=5)
INSTANCES = Splitting(method="instances", score_threshold=0.01, min_visible=0.1, min_area_px=2)


@pytest.mark.parametrize(("make", "splitting"), [(teach_unet, MAPS), (make_detector, INSTANCES)])
def test_the_compressed_bundle_gives_the_same_cells(make, splitting, data, tmp_path):
    samples = data.collect_held_out(3)
    net, recipe = compress(make(data), data)
    export_bundle(
        net,
        tmp_path / "bundle",
        samples=samples,
        channels=data.channels,
        image_dtypes=data.image_dtypes,
        pixel_size_um=None,
        splitting=splitting,
        accuracy={},
        provenance={},
        recipe=recipe,
    )
    manifest = load_manifest(tmp_path / "bundle")
    assert manifest.graphs[0].precision == "int8"
    assert [each["step"] for each in manifest.recipe] == ["prune", "quantize"]
    (tmp_path / "images").mkdir()
    for number, sample in enumerate(samples):
        write_image(tmp_path / "images" / f"field_{number}.tif", sample, data.channels)
    arguments = ["--bundle", str(tmp_path / "bundle"), str(tmp_path / "images"), "--threads", "1"]
    assert main(["predict", *arguments, "--out", str(tmp_path / "python")]) == 0
    done = cpp_build.run("cellvision_predict", *arguments, "--out", tmp_path / "cpp")
    assert (done.returncode, done.stderr.decode()) == (0, "")
    expected, found = ((tmp_path / side / "cells.csv").read_text() for side in ("python", "cpp"))
    assert len(expected.splitlines()) > 10
    assert found == expected
    for number in range(len(samples)):
        labels, found = (tifffile.imread(tmp_path / side / f"field_{number}_labels.tif") for side in ("python", "cpp"))
        assert (found == labels).all()
