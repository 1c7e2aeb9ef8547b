"""Two processes that share a batch: the mean of their gradients is the gradient of the whole batch in one."""

import functools

import pytest
import torch
import torch.nn.functional as F

from cellvision.models.centermask2.roi.maskiou_head import compute_maskiou_loss
from cellvision.ops.losses import CLASS_TERMS, WeightedLoss
from cellvision.ops.mask_losses import compute_mask_bce, compute_mask_boundary, compute_mask_dice
from cellvision.types import IGNORE, Targets
from forked import run_two

pytestmark = pytest.mark.slow

K = 3


def rate_masks(logits, masks):
    """MaskIoU's loss, of as many ratings as there are masks."""
    return compute_maskiou_loss(logits.mean((1, 2)), masks.mean((1, 2)))


SHARES = {  # of cells and of ignored pixels in the images of each process
    "alike": [(0.5, 0.1), (0.5, 0.1)],
    "uneven": [(0.9, 0.0), (0.1, 0.8)],
    "an empty image": [(0.5, 0.0), (0.0, 0.2)],
    "no valid pixel in one": [(0.5, 0.1), (0.5, 1.1)],
    "no valid pixel in both": [(0.5, 1.1), (0.5, 1.1)],
}
ACTIVATIONS = ["softmax", "sigmoid"]
MASK_LOSSES = [compute_mask_bce, compute_mask_dice, compute_mask_boundary, rate_masks]


def draw_part(rank, shares, soft):
    """Images (2 + rank, 2, 8, 8) of one process and their targets."""
    generator = torch.Generator().manual_seed(rank)
    draw = functools.partial(torch.rand, 2 + rank, 8, 8, generator=generator)
    cells, ignored = shares[rank]
    class_map = torch.where(draw() < cells, torch.where(draw() < 0.3, 2, 1), 0)
    distance = draw() * (class_map > 0)
    soft_classes = torch.rand(2 + rank, K, 8, 8, generator=generator).softmax(1) if soft else None
    class_map[draw() < ignored] = IGNORE
    images = torch.rand(2 + rank, 2, 8, 8, generator=generator)
    targets = Targets(
        class_map=class_map, distance=distance, label_image=class_map, cell_classes=(), soft_classes=soft_classes
    )
    return images, targets


def join(*parts):
    """The parts as one batch."""
    images, targets = zip(*parts, strict=True)
    maps = ("class_map", "distance", "label_image", "soft_classes")
    stacked = {name: [getattr(each, name) for each in targets] for name in maps}
    joined = {name: None if each[0] is None else torch.cat(each) for name, each in stacked.items()}
    return torch.cat(images), Targets(cell_classes=(), **joined)


def learn(images, targets, activation):
    """{term: (loss, gradient of the weights of a tiny net)}, each term by itself, all with class weights."""
    outputs = K if activation == "softmax" else K - 1
    found = {}
    for name in [*(name for name, term in CLASS_TERMS.items() if activation in term.activations), "distance"]:
        weighted = name in ("ce", "bce", "focal", "boundary")
        terms = {name: {"weight": 1.0, **({"class_weights": [0.2, 1.0, 3.0]} if weighted else {})}}
        distance = name == "distance"
        if distance:
            terms["dice"] = {"weight": 0.0}
        loss = WeightedLoss(terms, class_count=K, activation=activation, has_distance=distance)
        weights = torch.randn(outputs + 1, 2, 3, 3, generator=torch.Generator().manual_seed(9)).requires_grad_()
        logits = F.conv2d(images, weights, padding=1)
        value = loss({"classes": logits[:, :outputs], "distance": logits[:, outputs:]}, targets)[name]
        value.backward()
        found[name] = value.item(), weights.grad.numpy()
    return found


def learn_part(rank):
    with torch.no_grad():  # as in validation, where one process may have a batch more than the other
        images, targets = draw_part(rank, SHARES["uneven"], soft=False)
        loss = WeightedLoss({"ce": {"weight": 1.0}, "dice": {"weight": 1.0}}, class_count=K)
        logits = {"classes": torch.cat([images, images[:, :1]], dim=1)}
        own = [value.item() for value in loss(logits, targets).values()] if rank == 0 else None
    cases = [(name, soft, activation) for name in SHARES for soft in (False, True) for activation in ACTIVATIONS]
    learned = {
        (name, soft, activation): learn(*draw_part(rank, SHARES[name], soft), activation)
        for name, soft, activation in cases
    }
    return own, learned, learn_masks(*draw_masks(rank))


def draw_masks(rank):
    """Features and masks of five cells, of none in the second process."""
    generator = torch.Generator().manual_seed(3)
    count = 5 - 5 * rank
    return torch.randn(count, 6, 6, generator=generator), (torch.rand(count, 6, 6, generator=generator) < 0.5).float()


def learn_masks(features, masks):
    found = {}
    for compute in MASK_LOSSES:
        scale = torch.ones(6, requires_grad=True)
        value = compute(features * scale, masks)
        value.backward()
        found[compute.__name__] = value.item(), scale.grad.numpy()
    return found


@pytest.fixture(scope="module")
def parts():
    return run_two(learn_part)


def check_alike(first, second, joint):
    for term, (value, gradient) in joint.items():
        assert first[term][0] == pytest.approx(value, abs=1e-6)
        assert second[term][0] == pytest.approx(value, abs=1e-6)
        mean = torch.from_numpy((first[term][1] + second[term][1]) / 2)
        torch.testing.assert_close(mean, torch.from_numpy(gradient), rtol=0, atol=1e-6, msg=term)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", SHARES)
def test_every_term_is_that_of_the_joint_batch(parts, name, soft, activation):
    joint = learn(*join(*(draw_part(rank, SHARES[name], soft) for rank in range(2))), activation)
    check_alike(*(learned[name, soft, activation] for _, learned, _ in parts), joint)
    has_pixels = name != "no valid pixel in both"
    assert all(gradient.any() == has_pixels for _, gradient in joint.values())


def test_masks_of_a_process_without_cells(parts):
    check_alike(*(masks for _, _, masks in parts), learn_masks(*draw_masks(0)))


def test_without_a_gradient_a_process_counts_alone_and_waits_for_nobody(parts):
    images, targets = draw_part(0, SHARES["uneven"], soft=False)
    loss = WeightedLoss({"ce": {"weight": 1.0}, "dice": {"weight": 1.0}}, class_count=K)
    alone = loss({"classes": torch.cat([images, images[:, :1]], dim=1)}, targets)
    assert parts[0][0] == pytest.approx([value.item() for value in alone.values()], abs=1e-7)
