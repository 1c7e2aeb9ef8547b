"""Every loss term against torch, torchvision or the formula written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torchvision.ops import sigmoid_focal_loss

from cellvision.errors import ConfigError
from cellvision.ops.losses import CLASS_TERMS, WeightedLoss, to_one_hot
from cellvision.ops.pixel_losses import compute_class_weights
from cellvision.types import IGNORE, Targets

K = 3


def make_targets(seed=0, *, ignored=0.2, soft=False):
    generator = torch.Generator().manual_seed(seed)
    class_map = torch.randint(0, K, (2, 8, 9), generator=generator)
    class_map[torch.rand(2, 8, 9, generator=generator) < ignored] = IGNORE
    distance = torch.rand(2, 8, 9, generator=generator) * (class_map > 0)
    soft_classes = torch.rand(2, K, 8, 9, generator=generator).softmax(1) if soft else None
    return Targets(
        class_map=class_map, distance=distance, label_image=class_map.int(), cell_classes=(), soft_classes=soft_classes
    )


def make_logits(channels, seed=1, scale=2.0):
    return torch.randn(2, channels, 8, 9, generator=torch.Generator().manual_seed(seed)) * scale


def compute(term, targets, logits, *, activation="softmax", distance=None, **arguments):
    terms = {term: {"weight": 1.0, **arguments}}
    has_distance = term == "distance"
    if has_distance:
        terms["dice"] = {"weight": 1.0}
    loss = WeightedLoss(terms, class_count=K, activation=activation, has_distance=has_distance)
    return loss({"classes": logits, "distance": distance}, targets)[term]


def keep(values, targets):
    """(B, C, H, W) -> (N, C) of the pixels that count."""
    return values.movedim(1, -1)[targets.class_map != IGNORE]


@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_cross_entropy_is_that_of_torch(weights):
    targets, logits = make_targets(), make_logits(K)
    weight = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, targets.class_map, weight=weight, ignore_index=IGNORE)
    torch.testing.assert_close(compute("ce", targets, logits, class_weights=weights), expected)


def test_cross_entropy_of_soft_classes_is_that_of_torch():
    targets, logits = make_targets(soft=True), make_logits(K)
    expected = F.cross_entropy(keep(logits, targets), keep(targets.soft_classes, targets))
    torch.testing.assert_close(compute("ce", targets, logits), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_binary_cross_entropy_is_that_of_torch(soft):
    targets, logits = make_targets(soft=soft), make_logits(K - 1)
    target = targets.soft_classes if soft else to_one_hot(targets.class_map, K)
    expected = F.binary_cross_entropy_with_logits(keep(logits, targets), keep(target[:, 1:], targets))
    torch.testing.assert_close(compute("bce", targets, logits, activation="sigmoid"), expected)


def test_binary_cross_entropy_weighs_pixels_by_their_true_class():
    targets, logits, weights = make_targets(), make_logits(K - 1), torch.tensor([0.2, 1.0, 3.0])
    truth = keep(to_one_hot(targets.class_map, K), targets)
    weight = truth @ weights
    total = F.binary_cross_entropy_with_logits(
        keep(logits, targets), truth[:, 1:], weight=weight[:, None], reduction="sum"
    )
    found = compute("bce", targets, logits, activation="sigmoid", class_weights=weights.tolist())
    torch.testing.assert_close(found, total / (weight.sum() * (K - 1)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_is_that_of_torchvision(gamma):
    targets, logits = make_targets(), make_logits(K - 1)
    truth = keep(to_one_hot(targets.class_map, K)[:, 1:], targets)
    pixels = sigmoid_focal_loss(keep(logits, targets), truth, alpha=-1, gamma=gamma).sum(1)
    found = compute("focal", targets, logits, activation="sigmoid", gamma=gamma)
    torch.testing.assert_close(found, pixels.mean(), rtol=1e-4, atol=1e-6)


def test_softmax_focal_is_scaled_cross_entropy():
    targets, logits = make_targets(), make_logits(K)
    losses = F.cross_entropy(keep(logits, targets), targets.class_map[targets.class_map != IGNORE], reduction="none")
    expected = ((1 - torch.exp(-losses)) ** 2 * losses).mean()
    torch.testing.assert_close(compute("focal", targets, logits), expected, rtol=1e-4, atol=1e-6)


def test_focal_slope_is_finite_where_all_is_right():
    logits = torch.full((1, 2, 1, 1), 60.0).mul_(torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)).requires_grad_()
    targets = Targets(
        class_map=torch.ones(1, 1, 1).long(), distance=torch.ones(1, 1, 1), label_image=None, cell_classes=()
    )
    loss = WeightedLoss({"focal": {"weight": 1.0, "gamma": 0.5}}, class_count=2)
    sum(loss({"classes": logits}, targets).values()).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("term", "alpha", "beta", "arguments"),
    [("dice", 0.5, 0.5, {}), ("tversky", 0.3, 0.7, {}), ("tversky", 0.9, 0.2, {"alpha": 0.9, "beta": 0.2})],
)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_overlap_is_the_formula(term, alpha, beta, arguments, activation):
    targets = make_targets()
    logits = make_logits(K if activation == "softmax" else K - 1)
    right = logits.softmax(1)[:, 1:] if activation == "softmax" else logits.sigmoid()
    p = keep(right, targets).double().numpy()
    t = keep(to_one_hot(targets.class_map, K)[:, 1:], targets).double().numpy()
    hits, false, missed = (p * t).sum(0), (p * (1 - t)).sum(0), ((1 - p) * t).sum(0)
    if term == "dice":
        index = (2 * hits + 1) / (p.sum(0) + t.sum(0) + 1)
    else:
        index = (hits + 1) / (hits + alpha * false + beta * missed + 1)
    found = compute(term, targets, logits, activation=activation, **arguments)
    assert found.item() == pytest.approx((1 - index).mean(), rel=1e-5)


def test_boundary_band_is_a_dilation():
    """The band is where a square of the radius, clipped by image and ignored region, holds two classes."""
    targets = make_targets(ignored=0.3)
    class_map = targets.class_map.clone()
    class_map[:, :, :5][class_map[:, :, :5] != IGNORE] = 0
    term = CLASS_TERMS["boundary"](activation="softmax", class_count=K, radius_px=1)
    band = term.compute_band(to_one_hot(class_map, K), (class_map != IGNORE).float()).numpy()
    for found, classes in zip(band, class_map.numpy(), strict=True):
        near = [ndimage.binary_dilation(classes == k, np.ones((3, 3))) for k in range(K)]
        np.testing.assert_array_equal(found, np.sum(near, axis=0) >= 2)
        assert 0 < found.sum() < found.size


def test_boundary_is_cross_entropy_weighted_by_the_band():
    targets, logits = make_targets(), make_logits(K)
    assert compute("boundary", targets, logits, strength=0.0) == compute("ce", targets, logits)
    class_map = torch.zeros(1, 1, 9, dtype=torch.long)
    class_map[..., 6:] = 1
    one = Targets(class_map=class_map, distance=class_map.float(), label_image=class_map.int(), cell_classes=())
    strip = torch.randn(1, 2, 1, 9)
    loss = WeightedLoss({"boundary": {"weight": 1.0, "radius_px": 2, "strength": 4.0}}, class_count=2)
    weights = torch.tensor([1, 1, 1, 1, 5, 5, 5, 5, 1.0])
    expected = (F.cross_entropy(strip, class_map, reduction="none").flatten() * weights).sum() / weights.sum()
    torch.testing.assert_close(loss({"classes": strip}, one)["boundary"], expected)


@pytest.mark.parametrize("method", ["bce", "smooth_l1"])
def test_distance_is_that_of_torch(method):
    targets, logits = make_targets(), make_logits(1)
    found, truth = keep(logits, targets).squeeze(1), targets.distance[targets.class_map != IGNORE]
    if method == "bce":
        losses = F.binary_cross_entropy_with_logits(found, truth, reduction="none")
    else:
        losses = F.smooth_l1_loss(found.sigmoid(), truth, beta=0.1, reduction="none")
    weight = torch.where(truth > 0, 3.0, 1.0)
    value = compute("distance", targets, make_logits(K), distance=logits, method=method, foreground_weight=3.0)
    torch.testing.assert_close(value, (losses * weight).sum() / weight.sum())


def build_all(activation, **arguments):
    names = [name for name, term in CLASS_TERMS.items() if activation in term.activations]
    terms = {name: {"weight": 1.0} for name in [*names, "distance"]}
    return WeightedLoss(terms, class_count=K, activation=activation, has_distance=True, **arguments)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_finite_float32(activation, dtype):
    largest = 6e4  # of float16: 65504
    logits = make_logits(K if activation == "softmax" else K - 1).sign().mul(largest).to(dtype).requires_grad_()
    distance = make_logits(1).sign().mul(largest).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        losses = build_all(activation)({"classes": logits, "distance": distance}, make_targets())
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()
    assert distance.grad.isfinite().all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_ignored_pixels_never_count(activation):
    targets = make_targets()
    logits = make_logits(K if activation == "softmax" else K - 1).requires_grad_()
    distance = make_logits(1).requires_grad_()
    losses = build_all(activation)({"classes": logits, "distance": distance}, targets)
    sum(losses.values()).backward()
    ignored = targets.class_map == IGNORE
    assert not logits.grad.movedim(1, -1)[ignored].any()
    assert not distance.grad.movedim(1, -1)[ignored].any()
    assert logits.grad.movedim(1, -1)[~ignored].any(1).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_batch_without_a_valid_pixel_is_zero_with_a_gradient(activation):
    targets = make_targets(ignored=1.1)
    logits = make_logits(K if activation == "softmax" else K - 1).requires_grad_()
    distance = make_logits(1).requires_grad_()
    losses = build_all(activation)({"classes": logits, "distance": distance}, targets)
    assert all(value.item() == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert not logits.grad.any()
    assert not distance.grad.any()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_one_hot_soft_classes_change_nothing(activation):
    hard = make_targets(ignored=0)
    soft = Targets(
        class_map=hard.class_map,
        distance=hard.distance,
        label_image=hard.label_image,
        cell_classes=(),
        soft_classes=to_one_hot(hard.class_map, K),
    )
    logits = {"classes": make_logits(K if activation == "softmax" else K - 1), "distance": make_logits(1)}
    loss = build_all(activation)
    assert {k: v.item() for k, v in loss(logits, hard).items()} == {k: v.item() for k, v in loss(logits, soft).items()}


def test_losses_carry_their_weights_and_a_null_term_is_left_out():
    terms = {"ce": {"weight": 0.25}, "dice": {"weight": 2.0}, "focal": None}
    targets, logits = make_targets(), make_logits(K)
    losses = WeightedLoss(terms, class_count=K)({"classes": logits}, targets)
    assert list(losses) == ["ce", "dice"]
    torch.testing.assert_close(losses["ce"], 0.25 * compute("ce", targets, logits))
    torch.testing.assert_close(losses["dice"], 2 * compute("dice", targets, logits))


def test_automatic_class_weights_follow_the_data_and_the_checkpoint():
    auto = {"ce": {"weight": 1.0, "class_weights": "auto"}}
    loss, copy = WeightedLoss(auto, class_count=K), WeightedLoss(auto, class_count=K)
    targets, logits = make_targets(), make_logits(K)
    with pytest.raises(ConfigError, match=r"model\.loss\.ce\.class_weights is \"auto\".*need the statistics"):
        loss({"classes": logits}, targets)
    loss.set_statistics([800, 100, 50])
    copy.load_state_dict(loss.state_dict())
    expected = compute("ce", targets, logits, class_weights=[0.125, 1.0, 2.0])
    for each in (loss, copy):
        torch.testing.assert_close(each({"classes": logits}, targets)["ce"], expected)


def test_given_class_weights_stay():
    loss = WeightedLoss({"ce": {"weight": 1.0, "class_weights": [1, 2, 3]}}, class_count=K)
    loss.set_statistics([800, 100, 50])
    assert loss.terms["ce"].class_weights.tolist() == [1, 2, 3]


def test_median_frequency():
    assert compute_class_weights([900, 90, 10]) == pytest.approx((0.1, 1.0, 9.0))
    assert compute_class_weights([900, 100]) == pytest.approx((500 / 900, 5.0))
    assert compute_class_weights([900, 100, 0]) == pytest.approx((500 / 900, 5.0, 1.0))
    assert compute_class_weights([0, 0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"dices": {"weight": 1.0}}, r"unknown loss 'model.loss.dices'; need one of: .*try: 'model.loss.dice'"),
        ({"dice": 1.0}, r"model.loss.dice=1.0; need a weight and arguments; try: model.loss.dice.weight=1.0"),
        ({"dice": {}}, r"model.loss.dice.weight is missing"),
        ({"dice": {"weight": -1}}, r"model.loss.dice.weight=-1; need a number from 0 up"),
        ({"dice": {"weight": math.nan}}, r"model.loss.dice.weight=nan"),
        ({"dice": {"weight": "1"}}, r"model.loss.dice.weight='1'"),
        ({"dice": {"weight": 1, "smooth": 1}}, r"unknown setting 'model.loss.dice.smooth'.*try: .*dice.smoothing"),
        ({"dice": {"weight": 1, "smoothing": 0}}, r"model.loss.dice.smoothing=0"),
        ({"tversky": {"weight": 1, "alpha": -1}}, r"model.loss.tversky.alpha=-1"),
        ({"focal": {"weight": 1, "gamma": -1}}, r"model.loss.focal.gamma=-1"),
        ({"boundary": {"weight": 1, "radius_px": 1.5}}, r"model.loss.boundary.radius_px=1.5; need a whole number"),
        ({"ce": {"weight": 1, "class_weights": [1, 2]}}, r"model.loss.ce.class_weights=\[1, 2\].*3 numbers"),
        ({"ce": {"weight": 1, "class_weights": "automatic"}}, r"model.loss.ce.class_weights='automatic'"),
        ({"ce": {"weight": 1, "class_weights": [1, 2, -3]}}, r"model.loss.ce.class_weights=-3"),
        ({"bce": {"weight": 1}}, r"unknown model.activation for model.loss.bce 'softmax'; need one of: sigmoid"),
        ({"ce": None}, r"model.loss has the terms \(none\); need at least one on classes"),
        ({"ce": {"weight": 1}, "distance": {"weight": 1}}, r"model.loss has the term distance"),
    ],
)
def test_what_does_not_fit_is_named(terms, message):
    with pytest.raises(ConfigError, match=message):
        WeightedLoss(terms, class_count=K)


def test_distance_is_needed_where_it_is_predicted_and_its_settings_are_checked():
    with pytest.raises(ConfigError, match=r"lacks the term distance.*try: model.loss.distance.weight=1.0"):
        WeightedLoss({"ce": {"weight": 1}}, class_count=K, has_distance=True)
    terms = {"ce": {"weight": 1}, "distance": {"weight": 1, "method": "l2"}}
    with pytest.raises(ConfigError, match=r"unknown model.loss.distance.method 'l2'; need one of: bce, smooth_l1"):
        WeightedLoss(terms, class_count=K, has_distance=True)
    with pytest.raises(ConfigError, match=r"unknown model.activation 'relu'"):
        WeightedLoss({"ce": {"weight": 1}}, class_count=K, activation="relu")
