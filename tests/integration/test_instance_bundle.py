"""An instance net as a bundle: the same cells in PyTorch, in one ONNX graph and in two, at ten sizes."""

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from cellvision.bundle import Channel, Splitting, load_manifest
from cellvision.commands.evaluate import evaluate_bundle
from cellvision.commands.evaluation.truth import open_truth
from cellvision.errors import ConfigError, ExportError
from cellvision.export.forms import write_half
from cellvision.export.gate.found import open_bundle, open_net
from cellvision.export.gate.judged import Request, export_judged
from cellvision.export.graph_options import GraphOptions
from cellvision.export.onnx import open_eager
from cellvision.export.parity.detections import check_forward, pair_detections
from cellvision.export.writer import export_bundle
from cellvision.models.build import build_model
from cellvision.runtime.detections.cells import build_detected_cells
from cellvision.runtime.detections.found import read_detections
from cellvision.runtime.predictor import Predictor
from cellvision.runtime.session import open_session
from cellvision.types import DataStats, Sample

CLASSES = ("background", "live", "dead")
CHANNELS = (Channel(name="calcein", role="live"), Channel(name="PI", role="dead"))
# An untrained net gives every pixel of a mask about 0.5.
SPLITTING = Splitting(
    method="instances", score_threshold=0.001, foreground_threshold=0.45, min_visible=0.1, min_area_px=4
)


def options(**changes):
    return GraphOptions(input_dtype="uint8", min_score=0.0, **changes)


def make_image(height, width, kind="noise", seed=0):
    """(2, H, W) uint8 counts: noise, nothing, or as many spots as fit."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256 if kind == "noise" else 30, (2, height, width))
    if kind == "empty":
        image[:] = 0
    if kind == "dense":
        rows, columns = np.mgrid[:height, :width]
        image[0] += (200 * (np.sin(rows / 1.3) * np.sin(columns / 1.3) > 0.4)).astype(int)
    return np.clip(image, 0, 255).astype(np.uint8)


IMAGES = [
    make_image(1, 1), make_image(2, 90), make_image(33, 257), make_image(64, 64), make_image(127, 93),
    make_image(200, 40), make_image(96, 128, "empty"), make_image(128, 96, "dense"), make_image(161, 159, "dense"),
    make_image(256, 256, "dense"),
]  # fmt: skip


@pytest.fixture(scope="module")
def net():
    """Untrained, but with the statistics of its batch norms and thresholds so low that it finds hundreds of cells."""
    torch.manual_seed(0)
    made = build_model(
        name="centermask2", in_channels=2, classes=CLASSES, backbone="vovnet19_slim_dw", fpn_channels=32,
        class_convs=1, box_convs=1, mask_convs=1, maskiou_convs=1, levels=[2, 3, 4], top_levels=0, roi_levels=[2, 3],
        assigning={"sizes_of_interest": [16, 32]}, decoding={"score_threshold": 0.0, "post_nms": 400, "pre_nms": 300},
    )  # fmt: skip
    made.set_statistics(DataStats(offset=(0.0, 0.0), scale=(255.0, 255.0), class_pixels=(9, 1, 1)))
    made.train()
    with torch.no_grad():
        made.detector.roi_heads.maskiou_head.maskiou.bias += 0.8  # or every second mask is rated below 0
        for seed in range(3):
            made(torch.from_numpy(np.stack([make_image(96, 96, kind, seed) for kind in ("noise", "dense")])))
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def facts():
    none = np.zeros(0, np.int64)
    samples = [
        Sample(name=str(at), group="a", image=image, label_image=np.zeros(image.shape[1:], np.int32), cell_classes=none)
        for at, image in enumerate(IMAGES[-2:])
    ]
    return {
        "samples": samples, "channels": CHANNELS, "image_dtypes": ("uint8",), "pixel_size_um": None,
        "splitting": SPLITTING, "accuracy": {}, "provenance": {},
    }  # fmt: skip


@pytest.fixture(scope="module")
def bundles(net, facts, tmp_path_factory):
    """Folder of each form's bundle; exports take long, so tests share them."""
    folder = tmp_path_factory.mktemp("bundles")
    for form in ("whole", "parted"):
        export_bundle(net, folder / form, options=options(form=form), long_cell_px=200, **facts)
    return folder


@pytest.fixture(params=["whole", "parted"])
def bundle(request, bundles):
    return bundles / request.param


def detect(net, batch):
    with torch.inference_mode():
        outputs = {name: values.numpy() for name, values in net(torch.from_numpy(batch)).items()}
    return [read_detections(outputs, at) for at in range(len(batch))]


def compare(found, expected):
    assert len(found) == len(expected)
    # Equal scores may change places.
    for one in (found, expected):
        assert (np.diff(one.scores) <= 1e-6).all()
    order = [np.lexsort((one.boxes[:, 1].round(2), one.boxes[:, 0].round(2))) for one in (found, expected)]
    found, expected = found.take(order[0]), expected.take(order[1])
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    for name in ("scores", "class_scores", "masks", "mask_scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)
    assert (found.class_id == expected.class_id).all()


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: "x".join(map(str, image.shape[1:])))
def test_every_size_gives_the_detections_of_the_net(net, bundle, image):
    (expected,) = detect(net, image[None])
    found = open_session(bundle, threads=1).run(image)
    compare(found, expected)


def test_a_batch_gives_the_detections_of_its_images(net, bundle):
    batch = np.stack([make_image(70, 90, kind) for kind in ("dense", "empty", "noise")])
    session = open_session(bundle, threads=1)
    for at, found in enumerate(session.run_batch(batch)):
        compare(found, detect(net, batch[at : at + 1])[0])


def test_a_net_that_does_something_else_than_its_graph_is_refused(net):
    batch = np.stack([make_image(64, 64, kind) for kind in ("dense", "noise")])
    run, given = open_eager(net), {"detecting": net.detecting, "tolerance": 1e-3}
    assert check_forward(net, run, batch, **given)
    assert not check_forward(net, run, batch, **given | {"detecting": replace(net.detecting, min_score=0.999)})
    assert check_forward(
        net, run, batch, **given | {"detecting": replace(net.detecting, min_score=0.02, max_cells=100)}
    )
    other = copy.deepcopy(net)
    other.detector.roi_heads.mask_head.predictor.bias += 0.1
    with pytest.raises(ExportError, match=r"differ by up to 0\.02\d, with 0 of \d+ boxes unmatched; need"):
        check_forward(other, run, batch, **given)
    other.detector.roi_heads.mask_head.predictor.bias.fill_(torch.nan)
    with pytest.raises(ExportError, match=r"differ by up to nan"):
        check_forward(other, run, batch, **given)
    other = copy.deepcopy(net)
    other.detector.proposal_generator.decoding = replace(net.detector.proposal_generator.decoding, post_nms=90)
    with pytest.raises(ExportError, match=r"[1-9]\d* of \d+ boxes unmatched"):
        check_forward(other, run, batch, **given)


def test_predictor_gives_the_cells_of_the_net(net, bundle):
    image = IMAGES[8]
    cells = Predictor(bundle, threads=1)(image, channel_names=("calcein", "PI"))
    (expected,) = detect(net, image[None])
    wanted = build_detected_cells(
        expected, image, splitting=SPLITTING, classes=CLASSES, channels=("calcein", "PI"), live_threshold=0.5
    )
    assert len(cells) == len(wanted) > 1
    assert (cells.label_image > 0).mean() == pytest.approx((wanted.label_image > 0).mean(), abs=1e-3)
    assert (cells.class_id == wanted.class_id).all()


def test_a_bundle_is_scored_like_its_cells(bundle, tmp_path):
    """Against its own cells as truth a bundle is right about all of them."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    cells = Predictor(bundle, threads=1)(IMAGES[8])
    tifffile.imwrite(tmp_path / "images" / "a.tif", IMAGES[8], metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "labels" / "a.tif", cells.label_image.astype(np.uint16))
    truth = open_truth(load_manifest(bundle), images=tmp_path / "images", labels=tmp_path / "labels")
    scores = evaluate_bundle(Predictor(bundle, threads=1), truth).scores
    assert scores["cell/f1"] == scores["pixel/miou"] == 1.0
    assert scores["instance/ap_dsb_50"] == 1.0
    assert 0 < scores["mask/ap"] <= 1


def test_the_manifest_says_what_was_measured(bundle):
    manifest = load_manifest(bundle)
    assert manifest.kind == "instance"
    assert manifest.is_parted == (bundle.name == "parted")
    assert manifest.detecting.max_cells == 400
    assert manifest.overlap_px >= 200
    assert manifest.parity["max_difference"] < 1e-3
    assert manifest.parity["cells_net"] == manifest.parity["cells_graph"] > 10
    assert manifest.parity["unmatched"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bundle_with_room_for_more_cells_finds_them(net, facts, tmp_path):
    """And it agrees with PyTorch where that does the same; the net itself has room for 400."""
    manifest = export_bundle(net, tmp_path / "wide", options=options(max_cells=1000), long_cell_px=200, **facts)
    assert manifest.parity["unmatched"] == 0
    session = open_session(tmp_path / "wide", threads=1)
    assert len(session.run(IMAGES[-1])) > 700
    assert len(detect(net, IMAGES[-1][None])[0]) == 400


def test_16_bits_find_what_the_net_finds(net, bundle, tmp_path):
    manifest = write_half(net, bundle, tmp_path)
    assert {graph.precision for graph in manifest.graphs} == {"fp16"}
    for graph in manifest.graphs:
        assert (tmp_path / graph.file).stat().st_size < 0.75 * (bundle / graph.file).stat().st_size
    (expected,) = detect(net, IMAGES[8][None])
    found, expected = pair_detections(open_session(tmp_path, threads=1).run(IMAGES[8]), expected)
    assert len(expected) > 0.9 * load_manifest(tmp_path).detecting.max_cells
    assert 0 < np.abs(found.scores - expected.scores).max() < 0.01
    assert np.abs(found.masks - expected.masks).mean() < 0.01


def test_pytorch_is_compared_on_the_work_of_the_graph(net, bundle):
    """As many cells as the bundle has places for, from the score that the bundle starts with."""
    image = IMAGES[8]
    (every,) = detect(net, image[None])
    least = float(every.scores[10])
    few = replace(load_manifest(bundle).detecting, min_score=least, max_cells=4)
    for detecting, expected in ((few, every.take(slice(4))), (replace(few, max_cells=400), every.take(slice(11)))):
        outputs = open_eager(net, detecting=detecting)(torch.from_numpy(image[None]))
        compare(read_detections({name: values.numpy() for name, values in outputs.items()}, 0), expected)


@pytest.mark.slow
def test_two_graphs_are_judged_beside_one(net, bundles, facts, tmp_path, monkeypatch):
    """They are for engines and for less memory: slower is no reason to refuse them, and is said."""
    image = IMAGES[8]
    sample = Sample(
        name="a", group="a", image=image, label_image=np.zeros(image.shape[1:], np.int32),
        cell_classes=np.zeros(0, np.int64),
    )  # fmt: skip
    detecting = options().choose_detecting(net, SPLITTING)
    cells = open_net(net, splitting=SPLITTING, live_threshold=0.5, detecting=detecting)(sample).cells
    truth = replace(sample, label_image=cells.label_image, cell_classes=cells.class_id)
    given = {name: value for name, value in facts.items() if name != "samples"}
    monkeypatch.setattr("cellvision.export.gate.judged.load_facts", lambda _: (net, given))
    copied = lambda net, folder, *, options, **_: shutil.copytree(bundles / options.form, folder)  # noqa: E731
    monkeypatch.setattr("cellvision.export.gate.judged.export_bundle", copied)
    monkeypatch.setattr("cellvision.export.gate.measure.measure_net_memory", lambda *_, **__: None)
    slow = lambda rows, name: 1.0 if name == "fp32" else 3.0  # noqa: E731
    monkeypatch.setattr("cellvision.export.gate.measure.find_ratio", slow)
    monkeypatch.setattr("cellvision.export.gate.measure.find_sure_ratio", slow)
    verdict = export_judged(
        tmp_path / "no.ckpt", tmp_path / "b", Request(precision="fp32", runs=1, tolerance_points=5.0), samples=[truth],
        options=options(form="parted"), tolerance=1e-3,
    )  # fmt: skip
    manifest = load_manifest(tmp_path / "b")
    assert (verdict.kept, verdict.passed, manifest.is_parted) == ("two graphs", True, True)
    assert manifest.gate["forms"]["two graphs"]["remarks"] == ["takes 3.00 times as long as fp32"]
    assert manifest.gate["forms"]["fp32"]["accuracy"]["mask/ap"] > 0


def test_the_gate_sees_the_cells_that_the_predictor_gives(net, bundle):
    image = IMAGES[8]
    sample = Sample(
        name="a", group="a", image=image, label_image=np.zeros(image.shape[1:], np.int32),
        cell_classes=np.zeros(0, np.int64),
    )  # fmt: skip
    found = open_bundle(bundle, largest_px=256, threads=1)(sample)
    cells = Predictor(bundle, threads=1)(image)
    assert len(cells) > 1
    assert (found.cells.label_image == cells.label_image).all()
    assert (found.cells.class_id == cells.class_id).all()
    assert len(found.detections) == len(Predictor(bundle, threads=1).detect(image))


def test_what_an_instance_bundle_cannot_be(net, facts, tmp_path):
    with pytest.raises(ConfigError, match="unknown form 'split'; need one of"):
        export_bundle(net, tmp_path / "a", options=options(form="split"), **facts)
    unet = build_model(name="unet", kind="semantic", in_channels=2, classes=CLASSES, widths=(4, 8))
    plain = facts | {"splitting": Splitting(method="components")}
    with pytest.raises(ConfigError, match="max_cells=9 for a semantic net; need an instance net"):
        export_bundle(unet, tmp_path / "a", options=GraphOptions(max_cells=9), **plain)
    with pytest.raises(ExportError, match="net 'unet' of kind semantic in parts; need an instance net"):
        export_bundle(unet, tmp_path / "a", options=GraphOptions(form="parted"), **plain)
    assert not list(tmp_path.iterdir())
