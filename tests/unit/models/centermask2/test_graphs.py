"""The modules that are exported, run by PyTorch: the same cells as the net itself, at fixed places."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellvision.bundle import DETECTION_OUTPUTS, Detecting
from cellvision.errors import ExportError
from cellvision.models.build import build_model
from cellvision.ops.nms import suppress

SMALL = {
    "backbone": "vovnet19_slim_dw", "fpn_channels": 32, "class_convs": 1, "box_convs": 1, "mask_convs": 1,
    "maskiou_convs": 1, "levels": [2, 3, 4], "top_levels": 0, "roi_levels": [2, 3],
    "assigning": {"sizes_of_interest": [16, 32]},
}  # fmt: skip


def build(**settings):
    torch.manual_seed(0)
    decoding = {"score_threshold": 0.0, "post_nms": 30, "pre_nms": 60, **settings.pop("decoding", {})}
    net = build_model(
        name="centermask2", in_channels=2, classes=("background", "a", "b"), **SMALL, decoding=decoding, **settings
    ).train()
    with torch.no_grad():  # so that batch statistics are not those of no data
        for _ in range(3):
            net(make_images(4, 64, 64))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net():
    return build()


def make_images(batch, height, width):
    return torch.randint(0, 256, (batch, 2, height, width), generator=torch.Generator().manual_seed(7)).float()


def run(part, *inputs):
    return dict(zip(part.outputs, part.module(*inputs), strict=True))


@pytest.mark.parametrize("shape", [(1, 40, 56), (3, 61, 47), (2, 1, 1)])
def test_the_whole_graph_finds_what_the_net_finds(net, shape):
    images = make_images(*shape)
    (part,) = net.part(images)
    expected, found = net(images), run(part, images)
    assert part.outputs == (*DETECTION_OUTPUTS, "mask_scores")
    most = expected["scores"].shape[1]
    assert found["masks"].shape == (shape[0], 30, 28, 28)
    for name in part.outputs:
        torch.testing.assert_close(found[name][:, :most], expected[name], atol=1e-5, rtol=1e-4)
        assert not found[name][:, most:].any()


def test_two_parts_joined_find_what_the_net_finds(net):
    images = make_images(2, 61, 47)
    trunk, masks = net.part(images, parted=True)
    assert (trunk.role, masks.role) == ("trunk", "masks")
    assert list(masks.inputs) == ["map_0", "map_1", "boxes", "images", "classes", "image_area"]
    found, expected = run(trunk, images), net(images)
    assert found["scores"].shape == (2, 3 * 60)
    for at in range(2):
        there = (found["scores"][at] >= 0).nonzero().squeeze(1)
        row = {name: found[name][at][there] for name in ("boxes", "scores", "classes", "class_scores")}
        best = suppress(row["boxes"], row["scores"], row["classes"], iou=0.6)[:30]
        boxes, classes = row["boxes"][best], row["classes"][best]
        area = torch.tensor([61.0 * 47])
        maps = [found[name] for name in masks.inputs if name.startswith("map_")]
        drawn = run(masks, *maps, boxes, torch.full_like(classes, at), classes, area)
        valid = expected["valid"][at]
        torch.testing.assert_close(boxes, expected["boxes"][at][valid])
        torch.testing.assert_close(classes, expected["classes"][at][valid])
        torch.testing.assert_close(drawn["masks"], expected["masks"][at][valid], atol=1e-5, rtol=1e-4)
        rated = row["scores"][best] * drawn["mask_ious"]
        torch.testing.assert_close(rated, expected["mask_scores"][at][valid], atol=1e-5, rtol=1e-4)


def test_boxes_below_the_least_score_are_left_out(net):
    images = make_images(1, 64, 64)
    expected = net(images)["scores"][0].numpy()
    least = float(np.median(expected))
    (part,) = net.part(images, detecting=replace(net.detecting, min_score=least))
    found = run(part, images)
    assert found["valid"].sum() == (expected >= least).sum() < len(expected)
    assert found["scores"][found["valid"]].min() >= least


def test_a_net_that_rates_no_masks(net):
    unrated = build(mask_iou=False)
    images = make_images(2, 40, 40)
    (part,) = unrated.part(images)
    assert part.outputs == DETECTION_OUTPUTS
    assert unrated.part(images, parted=True)[1].outputs == ("masks",)
    assert len(part.module(images)) == len(DETECTION_OUTPUTS)


@pytest.mark.parametrize("parted", [False, True])
def test_more_cells_have_more_candidates(net, parted):
    """As many as a net has that was given that number from the beginning."""
    wide = build(decoding={"post_nms": 300, "pre_nms": 600})
    wide.load_state_dict(net.state_dict())
    images = make_images(1, 160, 160)
    detecting = Detecting(max_cells=300, min_score=0.0)
    found, expected = (run(one.part(images, detecting=detecting, parted=parted)[0], images) for one in (net, wide))
    assert found["scores"].shape == expected["scores"].shape
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, atol=1e-5, rtol=1e-4)
    assert (expected["scores"] > 0).sum() > 250


def test_a_net_with_its_own_detecting(net):
    assert net.detecting == Detecting(nms_iou=0.6, max_cells=30)


def test_what_cannot_be_a_graph(net):
    images = make_images(2, 40, 40)
    with pytest.raises(ExportError, match=r"model.decoding.soft_nms_sigma=0.5; need null for a graph; try: "):
        build(decoding={"soft_nms_sigma": 0.5}).part(images)
    narrow = build(decoding={"post_nms": 181})
    with pytest.raises(ExportError, match=r"max_cells=181 of 180 candidates; need at most 180; try: "):
        narrow.part(images)


def test_only_instance_nets_come_in_parts():
    unet = build_model(name="unet", kind="semantic", in_channels=1, classes=("background", "a"), widths=(4, 8))
    with pytest.raises(
        ExportError, match="net 'unet' of kind semantic in parts; need an instance net; try: form=whole"
    ):
        unet.part(torch.zeros(2, 1, 32, 32), parted=True)
