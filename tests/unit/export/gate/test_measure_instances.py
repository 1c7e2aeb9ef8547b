"""Forms of an instance net measured side by side: one graph, two graphs, and one that finds too much."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from cellvision.bundle import load_manifest
from cellvision.export.gate.decision import judge_forms
from cellvision.export.gate.found import open_bundle, open_net
from cellvision.export.gate.measure import NET, measure_forms
from cellvision.models.base import NetSpec, SegNet
from cellvision.types import Sample
from dot_net import build_whole, draw_dots, write_dot_bundle

PLACES = [(12, 14), (12, 44), (30, 30), (50, 12), (52, 50), (70, 40), (72, 70)]
RADII = [7, 6, 8, 7, 9, 6, 7]


class DotNet(nn.Module):
    """The dot net's graph in the place of a net in PyTorch."""

    part, detecting = SegNet.part, None

    def __init__(self, bundle):
        super().__init__()
        manifest = load_manifest(bundle)
        self.outputs = manifest.outputs
        self.spec = NetSpec(
            name="dot", kind="instance", in_channels=3, classes=manifest.classes, stride=manifest.stride,
            outputs=manifest.outputs, tiles=True,
        )  # fmt: skip
        self.session = onnxruntime.InferenceSession(str(bundle / manifest.graphs[0].file))

    def __deepcopy__(self, memo):
        return self

    def forward(self, images):
        found = self.session.run(list(self.outputs), {"image": images.numpy().astype(np.uint16)})
        return {name: torch.from_numpy(values) for name, values in zip(self.outputs, found, strict=True)}


def draw_field(name, *, dead=()):
    image = draw_dots((90, 90), PLACES, RADII, dead=dead)
    return Sample(
        name=name, group=name, image=image, label_image=np.zeros((90, 90), np.int32), cell_classes=np.zeros(0, np.int64)
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dots")
    return {
        "fp32": write_dot_bundle(folder / "fp32"),
        "parted": write_dot_bundle(folder / "parted", parted=True),
        "blind": write_dot_bundle(folder / "blind", blind(build_whole())),
    }


def blind(model):
    """The graph, whose boxes are a quarter of the size in one direction."""
    from onnx import helper, numpy_helper

    for node in model.graph.node:
        node.output[:] = ["true_boxes" if name == "boxes" else name for name in node.output]
        node.input[:] = ["true_boxes" if name == "boxes" else name for name in node.input]
    shrink = np.array([[1, 0, 0, 0], [0, 1, 0, 0.75], [0, 0, 1, 0], [0, 0, 0, 0.25]], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(shrink, "shrink"))
    model.graph.node.append(helper.make_node("MatMul", ["true_boxes", "shrink"], ["boxes"]))
    return model


@pytest.fixture(scope="module")
def net(bundles):
    return DotNet(bundles["fp32"])


@pytest.fixture(scope="module")
def fields(net, bundles):
    """The truth is what the net finds, but for one cell more that nothing shows."""
    manifest = load_manifest(bundles["fp32"])
    predict = open_net(net, splitting=manifest.splitting, live_threshold=manifest.live_threshold)
    made = []
    for name, dead in (("a", {0, 3}), ("b", {2})):
        sample = draw_field(name, dead=dead)
        cells = predict(sample).cells
        labels = cells.label_image.copy()
        labels[2:8, 80:88] = len(cells) + 1
        made.append(replace(sample, label_image=labels, cell_classes=np.append(cells.class_id, 1)))
    return made


@pytest.fixture(scope="module")
def measured(net, bundles, fields):
    return measure_forms(net, bundles, fields, threads=(1,), sizes=((90, 90), (32, 120)), batches=(1, 2), runs=2)


def test_one_graph_and_two_are_as_right_as_the_net(measured):
    reference, whole, parted, _ = measured
    assert [one.name for one in measured] == [NET, "fp32", "parted", "blind"]
    for form in (whole, parted):
        assert form.accuracy == pytest.approx(reference.accuracy)
        assert (form.agreement["cell_f1"], form.agreement["cell_iou"]) == (1.0, 1.0)
        assert form.cells == reference.cells == 14
        shapes = [[1, 3, 90, 90], [2, 3, 90, 90], [1, 3, 32, 120], [2, 3, 32, 120]]
        assert [row["shape"] for row in form.latency] == shapes
    assert reference.accuracy["instance/ap_dsb_50"] == pytest.approx(14 / 16)  # two cells cannot be found
    assert 0.7 < reference.accuracy["mask/ap"] < 0.95
    assert "max_difference" not in whole.agreement  # nothing is said of pixels
    assert whole.agreement["scores_max_difference"] == whole.agreement["boxes_mean_difference"] == 0
    assert 0 <= parted.agreement["masks_mean_difference"] <= parted.agreement["masks_max_difference"] < 1e-5
    assert parted.agreement["scores_max_difference"] < 1e-5
    assert parted.size_bytes != whole.size_bytes


def test_the_gate_tells_the_form_that_is_blind(measured, bundles):
    manifest = load_manifest(bundles["fp32"])
    reference, whole, parted, blind_one = (replace(one, least_ratio=1.0) for one in measured)
    how = {"tolerance_points": 1.0, "allow_worse": False}
    assert judge_forms([reference, whole, parted], manifest, **how).passed
    verdict = judge_forms([reference, whole, blind_one], manifest, **how)
    assert verdict.kept == "fp32"
    assert verdict.sentence.startswith("blind is ")
    for words in ("points worse in mask AP", "points worse in TP / (TP + FP + FN) at IoU 0.5", "fp32 is kept"):
        assert words in verdict.sentence


def test_detections_below_the_threshold_count_for_average_precision(bundles, fields):
    found = open_bundle(bundles["fp32"], largest_px=90, threads=1)(fields[0])
    assert found.probabilities is None
    assert len(found.detections) >= len(found.cells) > 0
