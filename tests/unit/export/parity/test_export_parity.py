import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cellvision.bundle import Channel, Graph, Manifest, Splitting, compute_sha256, load_manifest, write_manifest
from cellvision.errors import BundleError, ExportError
from cellvision.export.parity.comparison import (
    FULL,
    ParityCase,
    ParityReport,
    check_rounded,
    compare_with_net,
    cut,
    to_dtype,
)
from cellvision.export.reach import compute_reach
from cellvision.models.build import build_model


def describe(folder):
    return (Graph(role="whole", file="graph.onnx", sha256=compute_sha256(folder / "graph.onnx")),)


@pytest.fixture
def bundle(net, graphs, tmp_path):
    """A bundle without measurements: all that a comparison needs."""
    (tmp_path / "graph.onnx").write_bytes(graphs["float32"].read_bytes())
    manifest = Manifest(
        model="tiny", kind="viability", graphs=describe(tmp_path),
        input_dtype="float32", image_dtypes=("uint8", "uint16", "float32"), pixel_size_um=None, stride=4,
        channels=(Channel(name="calcein", role="live"), Channel(name="PI", role="dead")), classes=net.spec.classes,
        outputs=net.spec.outputs, splitting=Splitting(min_area_px=5),
    )  # fmt: skip
    write_manifest(manifest, tmp_path)
    return tmp_path


def test_same_weights_agree_at_every_size_batch_and_dtype(net, bundle, samples):
    report = compare_with_net(net, bundle, [sample.image for sample in samples])
    assert report.agrees
    cases = {(case.height, case.width, case.batch, case.image_dtype) for case in report.cases}
    assert len(cases) == 4 * 2 * 3
    assert {(150, 131), (127, 93), (64, 64), (33, 257)} == {size[:2] for size in cases}
    record = report.to_record()
    assert record["max_difference"] < 1e-4
    assert record["cells_net"] == record["cells_graph"] > 100
    assert record["outputs"].keys() == {"probabilities", "distance"}


def test_other_weights_do_not_agree_and_the_numbers_say_so(net, bundle, samples):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias += torch.tensor([0.5, 0.0, 0.0, 0.0])
    with pytest.raises(ExportError, match=r"differ by up to 0\.\d+ in probabilities, .* in distance \(at .* px, batch"):
        compare_with_net(other, bundle, [sample.image for sample in samples], sizes=[(64, 64)])


def test_a_difference_within_the_tolerance_agrees(net, bundle, samples):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias += torch.tensor([0.0, 1e-4, 0.0, 0.0])
    images = [sample.image for sample in samples]
    assert compare_with_net(other, bundle, images, sizes=[FULL]).to_record()["max_difference"] > 1e-6
    with pytest.raises(ExportError, match="at most 1e-06"):
        compare_with_net(other, bundle, images, sizes=[FULL], tolerance=1e-6)


def test_nan_from_the_net_does_not_agree(net, bundle, samples):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias.fill_(torch.nan)
    with pytest.raises(ExportError, match="nan in probabilities"):
        compare_with_net(other, bundle, [samples[0].image], sizes=[(33, 41)])


def test_a_graph_of_another_scale_is_named(net, bundle, samples):
    class Half(type(net)):
        def forward(self, images):
            return {name: result[..., ::2, ::2] for name, result in super().forward(images).items()}

    half = Half()
    half.load_state_dict(net.state_dict())
    with pytest.raises(ExportError, match="'probabilities' has shape"):
        compare_with_net(half, bundle, [samples[0].image], sizes=[(32, 32)])


def test_no_image_is_refused(net, bundle):
    with pytest.raises(ExportError, match="no image; need at least one real field"):
        compare_with_net(net, bundle, [])


def test_altered_graph_is_refused_before_it_is_run(net, bundle, samples):
    manifest = load_manifest(bundle)
    with (bundle / "graph.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match="expects SHA-256"):
        compare_with_net(net, bundle, [samples[0].image])
    write_manifest(
        replace(manifest, graphs=describe(bundle)),
        bundle,
    )
    with pytest.raises(BundleError, match="graph"):
        compare_with_net(net, bundle, [samples[0].image])


def case(*, cells_net, cells_graph, difference=0.0, **facts):
    return ParityCase(
        height=520, width=704, batch=1, image_dtype="uint8", class_difference=0.0, cells_net=cells_net,
        cells_graph=cells_graph, max_difference={"probabilities": difference}, mean_difference={"probabilities": 0.0},
        **facts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("net_cells", "graph_cells", "agrees"), [(0, 0, True), (50, 51, False), (199, 200, False), (200, 199, True)]
)
def test_one_cell_in_two_hundred_may_hang_on_rounding(net_cells, graph_cells, agrees):
    report = ParityReport(tolerance=1e-3, cases=(case(cells_net=net_cells, cells_graph=graph_cells),))
    assert report.agrees is agrees


def test_cells_that_cancel_out_between_fields_still_differ():
    cases = (case(cells_net=10, cells_graph=12), case(cells_net=12, cells_graph=10))
    assert not ParityReport(tolerance=1e-3, cases=cases).agrees


@pytest.mark.parametrize(("other", "agrees"), [(0, True), (25, True), (26, False), (1800, False)])
def test_masks_are_compared_on_the_pixels_of_cells(other, agrees):
    """1,800 px are 0.5 % of a field, and more than a third of its five cells."""
    cells = {"cells_net": 5, "cells_graph": 5}
    cases = (case(**cells, cell_pixels=5000, other_pixels=other), case(cells_net=0, cells_graph=0))
    report = ParityReport(tolerance=1e-3, loose=("masks",), cases=cases)
    assert report.agrees is agrees
    assert (report.to_record()["cell_pixels"], report.to_record()["other_pixels"]) == (5000, other)


def test_cut_takes_the_middle_or_repeats():
    image = np.arange(2 * 5 * 7).reshape(2, 5, 7)
    np.testing.assert_array_equal(cut(image, 3, 3), image[:, 1:4, 2:5])
    assert cut(image, 12, 20).shape == (2, 12, 20)
    assert set(np.unique(cut(image, 12, 20))) == set(range(70))


def test_to_dtype_clips_instead_of_wrapping_round():
    image = np.array([[[300.7, -2.0, 7.0]]], np.float32)
    assert to_dtype(image, "uint8").tolist() == [[[255, 0, 7]]]


class Convolutions(nn.Module):
    """Three layers whose reach follows from arithmetic: dilation times (kernel - 1) / 2, summed."""

    def __init__(self, spec, *layers):
        super().__init__()
        self.spec, self.layers = spec, nn.Sequential(*layers)

    def forward(self, images):
        return {"probabilities": self.layers(images)}


def test_reach_is_what_arithmetic_gives(net):
    spec = replace(net.spec, stride=1, in_channels=1)
    layers = [nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.Conv2d(1, 1, (1, 5), padding=(0, 20), dilation=10)]
    assert compute_reach(Convolutions(spec, *layers)) == 1 + 20
    pooled = [nn.Conv2d(1, 1, 7, padding=3), nn.MaxPool2d(4), nn.Upsample(scale_factor=4, mode="nearest")]
    assert compute_reach(Convolutions(replace(spec, stride=4), *pooled)) == 4  # 3, rounded up to the stride
    assert compute_reach(Convolutions(spec, nn.Conv2d(1, 1, 201, padding=100))) == 100


@pytest.mark.parametrize("widths", [(4, 8), (4, 4, 4)])
def test_reach_is_as_far_as_a_change_of_the_image_is_felt(widths):
    torch.manual_seed(0)
    net = build_model(name="unet", kind="semantic", in_channels=1, classes=("background", "cell"), widths=widths).eval()
    net = net.double()
    stride, reach_px = net.spec.stride, compute_reach(copy.deepcopy(net).float())
    image = torch.zeros(1, 1, 128, 128)
    changed = image.clone()
    changed[..., 64 : 64 + stride, 64 : 64 + stride] = torch.linspace(-5, 5, stride**2).view(stride, stride)
    with torch.inference_mode():
        felt = (net(image)["probabilities"] != net(changed)["probabilities"]).any(1).any(1)[0].nonzero()
    farthest_px = max(64 - int(felt.min()), int(felt.max()) - (64 + stride - 1))
    assert reach_px - stride < farthest_px <= reach_px


def test_reach_of_a_layer_that_sees_everything_has_no_number(net):
    spec = replace(net.spec, stride=1, in_channels=1)
    assert compute_reach(Convolutions(spec, nn.InstanceNorm2d(1))) is None


def test_net_that_hides_nan_is_refused(net):
    class Hiding(Convolutions):
        def forward(self, images):
            return super().forward(images.nan_to_num())

    with pytest.raises(ExportError, match="answers NaN pixels with numbers"):
        compute_reach(Hiding(replace(net.spec, in_channels=1), nn.Identity()))


@pytest.mark.parametrize(
    ("mean", "pixels", "message"),
    [(0.004, 0, None), (0.05, 0, "by 0.050 on average"), (0.004, 3, "by 0.030"), (float("nan"), 0, "by nan")],
)
def test_integers_may_differ_by_what_ties_explain_and_no_more(mean, pixels, message):
    case = ParityCase(
        height=10,
        width=10,
        batch=1,
        image_dtype="float32",
        max_difference={"probabilities": 0.3},
        mean_difference={"probabilities": mean},
        class_difference=0.04,  # of a net that is sure of nothing
        cells_net=1,
        cells_graph=1,
        cell_pixels=50,
        other_pixels=pixels,
        unmatched=0.0,
    )
    report = ParityReport(tolerance=1e-3, cases=(case,))
    if message is None:
        check_rounded(report)
    else:
        with pytest.raises(ExportError, match=message):
            check_rounded(report)
