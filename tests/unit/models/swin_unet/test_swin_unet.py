"""The Swin-UNet: its settings, what it declares of itself, and that it learns."""

import numpy as np
import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.export.half import to_half
from cellvision.export.reach import compute_reach
from cellvision.metrics.semantic import compute_confusion, compute_semantic_scores
from cellvision.models.build import build_model

PLAIN = {"name": "swin_unet", "in_channels": 2, "classes": ("background", "live", "dead")}
SMALL = PLAIN | {"widths": (8, 16), "depths": (2, 2), "heads": (1, 2)}


def test_the_default_net_is_of_moderate_size():
    net = build_model(**PLAIN, kind="viability")
    assert 1e6 < sum(parameter.numel() for parameter in net.parameters()) < 3.1e6
    assert (net.spec.stride, net.spec.tiles, net.strides) == (64, True, (2, 4, 8, 16))


@pytest.mark.parametrize("patch_size", [2, 4])
def test_features_are_named_by_their_stride(patch_size):
    net = build_model(**SMALL, patch_size=patch_size, window=3).eval()
    side = net.spec.stride
    assert side == patch_size * 2 * 3
    with torch.no_grad():
        features = net.features(torch.zeros(1, 2, side, 2 * side - 1))
    expected = {1: 8, patch_size: 8, 2 * patch_size: 16}
    shapes = {name: tuple(maps.shape) for name, maps in features.items()}
    assert shapes == {f"stride_{s}": (1, width, side // s, 2 * side // s) for s, width in expected.items()}


def test_the_reach_is_that_of_the_windows():
    """One block looks as far as its window; two, one of them shifted, half a window further to both sides."""
    one = build_model(**SMALL | {"depths": (1, 1), "window": 4})
    two = build_model(**SMALL | {"depths": (2, 2), "window": 4})
    assert one.spec.stride == 16
    assert compute_reach(one) == 0
    assert compute_reach(two) == 32


def test_blocks_are_skipped_more_often_the_deeper_they_are():
    net = build_model(**SMALL, drop_path=0.3)
    shares = [[block.stochastic_depth.p for block in stage] for stage in (*net.stages, net.decoder[0].stage)]
    np.testing.assert_allclose(shares, [[0, 0.1], [0.2, 0.3], [0, 0.1]], atol=1e-7)
    torch.manual_seed(0)
    images = torch.rand(4, 2, 32, 32)
    first, second = (net.train().logits(images)["classes"] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (net.eval().logits(images)["classes"] for _ in range(2))
    assert torch.equal(first, second)


def test_it_runs_in_half_precision(swin_run, swin_data):
    net, _ = swin_run
    image = torch.from_numpy(swin_data.collect_held_out(1)[0].image[None].astype(np.float32))
    with torch.no_grad():
        expected, found = net(image), to_half(net)(image)
    for name, maps in expected.items():
        difference = (found[name] - maps).abs()
        assert difference.mean() < 2e-3
        assert difference.max() < 0.05


def test_it_learns(swin_run, swin_data):
    """Better on fields it has not seen than a net that says background everywhere."""
    net, losses = swin_run
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    confusion, lazy = (np.zeros((3, 3), np.int64) for _ in range(2))
    for sample in swin_data.collect_held_out(4):
        with torch.no_grad():
            found = net(torch.from_numpy(sample.image[None].astype(np.float32)))["probabilities"][0].argmax(0).numpy()
        confusion += compute_confusion(found, sample.class_map, 3)
        lazy += compute_confusion(np.zeros_like(found), sample.class_map, 3)
    scores, trivial = compute_semantic_scores(confusion), compute_semantic_scores(lazy)
    assert scores.miou > trivial.miou + 0.2
    assert scores.foreground_iou > 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widthz": 3}, r"unknown setting of swin_unet 'model.widthz'; need one of: .*try: 'model.widths'"),
        ({"in_channels": 0}, r"model.in_channels=0; need a whole number from 1 up"),
        ({"classes": ["cell"]}, r"model.classes=\['cell'\]; need two or more different names, background first"),
        ({"kind": "instance"}, r"unknown model.kind 'instance'; need one of: semantic, viability"),
        ({"kind": "viability", "classes": ["background", "cell"]}, r"need live and dead among them"),
        ({"kind": "viability", "activation": "sigmoid"}, r"model.activation=sigmoid; need softmax"),
        ({"dropout": 1}, r"model.dropout=1; need a number from 0 up and below 1"),
        ({"widths": [8]}, r"model.widths=\[8\]; need a whole number from 1 up for each of two or more"),
        ({"widths": 8}, r"model.widths=8; need"),
        (
            {"depths": [2]},
            r"model.depths=\[2\]; need a whole number from 1 up for each of the 2 levels of model.widths",
        ),
        ({"depths": [2, 0]}, r"model.depths=\[2, 0\]; .*; try: model.depths=\[2, 2\]"),
        ({"heads": [1, 2, 2]}, r"model.heads=\[1, 2, 2\]; need a whole number from 1 up for each of the 2 levels"),
        (
            {"heads": [1, 3]},
            r"model.heads=\[1, 3\]; need divisors of model.widths=\[8, 16\]; try: model.heads=\[1, 1\]",
        ),
        ({"patch_size": 1}, r"model.patch_size=1; need a whole number from 2 up"),
        ({"window": 1}, r"model.window=1; need a whole number from 2 up"),
        ({"mlp_ratio": 0}, r"model.mlp_ratio=0; need a number above 0 up to 16"),
        ({"drop_path": 1.0}, r"model.drop_path=1.0; need a number from 0 up and below 1"),
        ({"loss": {"ce": {"weight": 1}, "distance": {"weight": 1}}}, r"model.loss has the term distance"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_model(**{**SMALL, **changes})
