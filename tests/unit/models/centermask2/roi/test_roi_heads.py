"""The mask branch: chunks, images and options."""

import pytest
import torch
from tiny_detector import build_tiny, make_field

from cellvision.models.centermask2.fcos.decode import Proposals
from cellvision.models.centermask2.ground_truth.cells import truth_from_labels
from cellvision.models.centermask2.options import FcosDecoding, MaskLosses
from cellvision.models.centermask2.roi.heads import compute_inside_shares, crop_masks
from cellvision.models.centermask2.roi.pool import flatten_boxes
from cellvision.models.centermask2.roi.sampling import sample_regions
from cellvision.ops.mask_losses import compute_mask_bce, compute_mask_boundary, compute_mask_dice

SIZES = [(96, 128), (80, 100)]


def make_proposals(truth, classes=2):
    count = len(truth.boxes)
    return Proposals(
        boxes=truth.boxes,
        scores=torch.linspace(0.9, 0.1, count),
        classes=torch.arange(count) % classes,
        locations=truth.boxes[:, :2],
        class_scores=torch.rand(count, classes),
    )


def assert_close(drawn, expected):
    """Equal up to the order in which a convolution of another batch size adds."""
    torch.testing.assert_close(drawn.masks, expected.masks, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(drawn.ious, expected.ious, rtol=1e-4, atol=1e-4)


@pytest.fixture
def scene():
    """Net, pyramid, truths and proposals of two images, the first without cells."""
    net = build_tiny()
    with torch.no_grad():
        torch.nn.init.normal_(net.roi_heads.mask_head.predictor.weight)  # or all masks would be alike
        torch.nn.init.normal_(net.roi_heads.maskiou_head.maskiou.weight)
        image, labels = make_field()
        pyramid = net.encode(torch.nn.functional.pad(torch.stack([image, image.flip(1)]), (0, 0, 0, 32)))
    classes = torch.ones(12, dtype=torch.int64)
    truths = [truth_from_labels(labels * 0, classes), truth_from_labels(labels, classes)]
    return net.roi_heads, pyramid, truths, [make_proposals(truth) for truth in truths]


def test_chunks_change_nothing_and_masks_go_back_to_their_image(scene):
    heads, pyramid, _, (_, found) = scene
    index = torch.arange(len(found.scores))
    proposals = [found[index[:3]], found[index[:0]], found[index[3:]]]
    three = {level: torch.cat([maps, maps[:1]]) for level, maps in pyramid.items()}
    sizes = [(96, 128), (50, 60), (33, 44)]
    results = []
    with torch.no_grad():
        for chunk in (1, 4, 1000):
            heads.roi_chunk = chunk
            results.append(heads.detect(three, sizes, proposals))
        boxes, images, areas = flatten_boxes([proposals[2].boxes], [sizes[2]])
        alone = heads.draw(three, boxes, images + 2, areas, proposals[2].classes)
    assert [len(drawn.masks) for drawn in results[0]] == [3, 0, len(index) - 3]
    for result in results:
        for drawn, expected in zip(result, results[0], strict=True):
            assert_close(drawn, expected)
        assert_close(result[2], alone)


def test_each_mask_is_that_of_the_class(scene):
    heads, pyramid, _, (_, found) = scene
    boxes, images, areas = flatten_boxes([found.boxes], SIZES[1:])
    with torch.no_grad():
        drawn = heads.draw(pyramid, boxes, images, areas, found.classes)
        logits = heads.mask_head(heads.pool(pyramid, boxes, images, areas))
    for mask, name, maps in zip(drawn.masks, found.classes, logits, strict=True):
        torch.testing.assert_close(mask, maps[name].sigmoid())


def test_no_image_with_a_box(scene):
    heads, pyramid, _, (nothing, _) = scene
    for drawn in heads.detect(pyramid, SIZES, [nothing, nothing]):
        assert drawn.masks.shape == (0, 28, 28)
        assert drawn.ious.shape == (0,)


@pytest.mark.parametrize(("dice", "boundary"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0), (0.5, 2.0)])
def test_mask_loss_is_the_weighted_sum_of_its_terms(scene, dice, boundary):
    heads, pyramid, truths, proposals = scene
    heads.loss_options = MaskLosses(dice=dice, boundary=boundary, maskiou_weight=3.0)
    losses = heads.losses(pyramid, SIZES, proposals, truths)
    regions = [sample_regions(p.boxes, t, heads.sampling) for p, t in zip(proposals, truths, strict=True)]
    boxes, images, areas = flatten_boxes([each.boxes for each in regions], SIZES)
    features = heads.pool(pyramid, boxes, images, areas)
    masks = crop_masks(regions, truths, side=28)
    logits = heads.mask_head(features)[:, 0]  # all cells are of class 0
    expected = compute_mask_bce(logits, masks.float())
    expected = expected + dice * compute_mask_dice(logits, masks.float())
    expected = expected + boundary * compute_mask_boundary(logits, masks.float())
    torch.testing.assert_close(losses["loss_mask"], expected)
    shared = (masks & (logits > 0)).sum((1, 2))
    union = (logits > 0).sum((1, 2)) + masks.sum((1, 2)) / compute_inside_shares(regions, truths) - shared
    ious = (shared / union)[shared > 0]
    found = heads.maskiou_head(features, logits.sigmoid().unsqueeze(1))[shared > 0, 0]
    torch.testing.assert_close(losses["loss_maskiou"], 3 * 0.5 * (found - ious).square().mean().float())


def test_gradients_of_the_rated_masks_reach_the_mask_head(scene):
    heads, pyramid, truths, proposals = scene
    heads.losses(pyramid, SIZES, proposals, truths)["loss_maskiou"].backward()
    assert heads.mask_head.predictor.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("mask_classes", [None, 1])
@pytest.mark.parametrize("mask_iou", [True, False])
def test_one_mask_for_all_classes_and_no_rating(mask_classes, mask_iou):
    net = build_tiny(mask_classes=mask_classes, mask_iou=mask_iou, decoding=FcosDecoding(score_threshold=0.0))
    image, labels = make_field()
    pyramid = net.encode(image.unsqueeze(0))
    truth = truth_from_labels(labels, torch.arange(12) % 2 + 1)
    losses = net.losses(pyramid, net.predict(pyramid), SIZES[:1], [truth])
    assert ("loss_maskiou" in losses) == mask_iou
    (found,) = net.detect(pyramid, net.predict(pyramid), SIZES[:1])
    assert len(found.masks) == 50
    assert (found.mask_scores is not None) == mask_iou
    assert set(found.classes.tolist()) == {0, 1}
