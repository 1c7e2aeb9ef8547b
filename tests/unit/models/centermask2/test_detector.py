"""The whole detector: gradients whatever the batch holds, its levels, its names, and its graph."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_detector import build_tiny, make_field
from torchvision.ops import box_iou

from cellvision.errors import ConfigError
from cellvision.models.backbones.bottom_up import build_bottom_up
from cellvision.models.backbones.fpn import FPN
from cellvision.models.centermask2.detector import CenterMask
from cellvision.models.centermask2.fcos.head import FcosHead
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from cellvision.models.centermask2.options import FcosAssigning, FcosDecoding, FcosLosses, MaskLosses
from cellvision.models.centermask2.roi.mask_head import MaskHead
from cellvision.models.centermask2.roi.maskiou_head import MaskIouHead
from cellvision.models.centermask2.roi.pool import RoiPool, flatten_boxes
from cellvision.types import IGNORE

KEYS = Path(os.environ.get("CELLVISION_SHARED", Path(__file__).resolve().parents[5] / "shared")) / "design"

SIZE = (96, 128)
EVERYTHING = {
    "losses": FcosLosses(box_loss="ciou", smoothing=0.0, class_weights=(1.0, 3.0)),
    "mask_losses": MaskLosses(dice=1.0, boundary=1.0),
    "assigning": FcosAssigning(sizes_of_interest=(16, 32, 64, 128), max_positives=20),
}


def make_truth(labels, classes=None):
    count = int(labels.max())
    return truth_from_labels(labels, torch.arange(count) % 2 + 1 if classes is None else classes)


def make_thin_cells():
    """Cells one pixel wide or high, single pixels, and cells along every border."""
    labels = torch.zeros(SIZE, dtype=torch.int32)
    for label, place in enumerate(
        [
            np.s_[10:40, 20], np.s_[50, 30:90], np.s_[60, 60], np.s_[0, 0:30], np.s_[95, 60:128], np.s_[20:60, 127],
            np.s_[95, 0], np.s_[12, 12],
        ],
        start=1,
    ):  # fmt: skip
        labels[place] = label
    return labels


def list_batches():
    """Name, truths and sizes of batches of two images."""
    _, labels = make_field()
    empty, small = labels * 0, labels[:50, :70].clone()
    crowd = torch.full((12,), IGNORE)
    return {
        "cells": ([make_truth(labels), make_truth(labels.flip(0))], [SIZE, SIZE]),
        "one image empty": ([make_truth(empty), make_truth(labels)], [SIZE, SIZE]),
        "no cells": ([make_truth(empty), make_truth(empty)], [SIZE, SIZE]),
        "ignored cells only": ([make_truth(labels, crowd), make_truth(empty)], [SIZE, SIZE]),
        "thin cells": ([make_truth(make_thin_cells()), make_truth(empty)], [SIZE, SIZE]),
        "two sizes": ([make_truth(labels), make_truth(small)], [SIZE, (50, 70)]),
        "one cell is the image": ([make_truth(empty + 1), make_truth(empty)], [SIZE, SIZE]),
    }


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"mask_iou": False, "attention": False}], ids=["", "all", "bare"])
@pytest.mark.parametrize("batch", list(list_batches()))
def test_every_weight_has_a_finite_gradient_whatever_the_batch_holds(batch, options):
    net = build_tiny(**options).train()
    truths, sizes = list_batches()[batch]
    images = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    pyramid = net.encode(images)
    losses = net.losses(pyramid, net.predict(pyramid), sizes, truths)
    expected = {"loss_mask", "loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert set(losses) == expected | ({"loss_maskiou"} if options.get("mask_iou", True) else set())
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if not any(len(truth.boxes) for truth in truths):
        assert [name for name, loss in losses.items() if loss != 0] == ["loss_fcos_cls"]


def test_ignored_cells_are_neither_cells_nor_background():
    net = build_tiny().eval()
    image, labels = make_field()
    pyramid = net.encode(image.unsqueeze(0))
    outputs = net.predict(pyramid)
    truths = [make_truth(labels, torch.full((12,), name)) for name in (IGNORE, 1)]
    truths.append(make_truth(labels * 0))
    ignored, cells, background = (
        net.losses(pyramid, outputs, [SIZE], [truth])["loss_fcos_cls"].item() for truth in truths
    )
    assert 0 < ignored < background < cells


@pytest.mark.parametrize(("levels", "stem_stride", "top_levels"), [((2, 3, 4), 4, 1), ((3, 4, 5), 2, 0), ((4,), 4, 2)])
def test_other_levels_find_and_learn(levels, stem_stride, top_levels):
    decoding = FcosDecoding(score_threshold=0.0)
    net = build_tiny(levels=levels, stem_stride=stem_stride, top_levels=top_levels, decoding=decoding)
    image, labels = make_field()
    pyramid = net.encode(image.unsqueeze(0))
    outputs = net.predict(pyramid)
    assert all(loss > 0 for loss in net.losses(pyramid, outputs, [SIZE], [make_truth(labels)]).values())
    (found,) = net.detect(pyramid, outputs, [SIZE])
    strides = torch.tensor(list(net.backbone.strides.values())).view(-1, 1, 1)
    assert (found.locations % strides == strides // 2).all(2).any(0).all()  # on the grid of some level
    assert found.class_scores.shape == (50, 2)
    assert found.masks.shape == (50, 28, 28)


def test_levels_that_the_pyramid_lacks_are_refused():
    net = build_tiny()
    parts = {"backbone": net.backbone, "proposal_generator": net.proposal_generator, "roi_heads": net.roi_heads}
    net.roi_heads.pool = RoiPool(strides={2: 4, 3: 8})
    with pytest.raises(ConfigError, match=r"model.roi_levels as level: stride in px are \{2: 4, 3: 8\}; need some of"):
        CenterMask(**parts)
    net.proposal_generator.strides = {3: 4}
    with pytest.raises(ConfigError, match=r"model.levels as level: stride in px are \{3: 4\}.*\{3: 8, 4: 16"):
        CenterMask(**parts)


def test_a_few_steps_on_one_field_find_its_cells():
    net = build_tiny(classes=1, channels=32, decoding=FcosDecoding(score_threshold=0.2)).train()
    image, labels = make_field(radius=(6, 12), count=8, seed=3)
    truth = make_truth(labels, torch.ones(8, dtype=torch.int64))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        pyramid = net.encode(image.unsqueeze(0))
        total = sum(net.losses(pyramid, net.predict(pyramid), [SIZE], [truth]).values())
        first = first or total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():
        pyramid = net.eval().encode(image.unsqueeze(0))
        (found,) = net.detect(pyramid, net.predict(pyramid), [SIZE])
    ious = box_iou(truth.boxes, found.boxes).amax(1)
    assert total.item() < 0.5 * first
    assert (ious > 0.5).float().mean() > 0.7


class Exported(torch.nn.Module):
    """One image to its cells, as an exporter wants it: all boxes are drawn at once."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        pyramid = self.net.encode(images)
        (found,) = self.net.proposal_generator.detect(self.net.predict(pyramid))
        drawn = self.net.roi_heads.draw(pyramid, *flatten_boxes([found.boxes], [SIZE]), found.classes)
        return found.boxes, found.scores, found.classes, drawn.masks, drawn.ious


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter deprecates parts of itself
def test_the_graph_gives_the_same_cells_in_onnx_runtime(tmp_path):
    net = build_tiny().eval()
    with torch.no_grad():
        net.proposal_generator.fcos_head.cls_logits.weight.normal_(std=0.3)
        net.proposal_generator.fcos_head.bbox_pred.bias.fill_(2)
    images = torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        program = torch.export.export(Exported(net), (images,), strict=False)
        torch.onnx.export(program, (images,), dynamo=True, verbose=False).save(tmp_path / "net.onnx")
        images = make_field(seed=5)[0].unsqueeze(0)
        expected = Exported(net)(images)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert len(found[0]) == len(expected[0]) > 10
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


PUBLISHED = {
    "lite-V-19-slim": {"name": "vovnet19_slim", "width": 128, "convs": 2, "norm": "frozen"},
    "lite-Mv2": {"name": "mobilenetv2", "width": 128, "convs": 2, "norm": "frozen"},
    "V-39": {"name": "vovnet39", "width": 256, "convs": 4, "norm": "frozen"},
    "R-50": {"name": "resnet50", "width": 256, "convs": 4, "norm": "frozen"},
}


@pytest.mark.shared
@pytest.mark.skipif(not KEYS.is_dir(), reason="the lists of published names are not beside the checkout")
@pytest.mark.parametrize("model", PUBLISHED)
def test_names_and_shapes_of_the_weights_are_the_published_ones(model):
    settings = PUBLISHED[model]
    with gzip.open(KEYS / "centermask2-keys" / f"{model}.json.gz") as stream:
        published = json.load(stream)
    width, convs = settings["width"], settings["convs"]
    tiny = build_tiny()
    with torch.device("meta"):
        bottom_up = build_bottom_up(settings["name"], in_channels=3, levels=(3, 4, 5), norm=settings["norm"])
        shape = {"in_channels": width, "width": width, "class_count": 80, "conv_count": convs}
        tiny.proposal_generator.fcos_head = FcosHead(
            channels=width, class_count=80, level_count=5, class_convs=convs, box_convs=convs
        )
        tiny.roi_heads.mask_head, tiny.roi_heads.maskiou_head = MaskHead(**shape), MaskIouHead(**shape)
        net = CenterMask(
            backbone=FPN(bottom_up=bottom_up, out_channels=width),
            proposal_generator=tiny.proposal_generator,
            roi_heads=tiny.roi_heads,
        )
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == dict(published["keys"])
