"""What every registered net that finds cells promises."""

import pytest
import torch

from cellvision.errors import ConfigError
from cellvision.models.base import SegNet
from cellvision.models.build import build_model
from cellvision.types import IGNORE, DataStats, Targets

CLASSES = ("background", "live", "dead")
STATS = DataStats(offset=(100.0, 20.0), scale=(80.0, 50.0), class_pixels=(900, 90, 10))
SMALL = {
    "backbone": "vovnet19_slim_dw",
    "fpn_channels": 32,
    "class_convs": 1,
    "box_convs": 1,
    "mask_convs": 1,
    "maskiou_convs": 1,
    "decoding": {"score_threshold": 0.0, "post_nms": 20},
}
VARIANTS = {
    "published levels": {},
    "small cells": {
        "levels": [2, 3, 4],
        "top_levels": 0,
        "roi_levels": [2, 3],
        "assigning": {"sizes_of_interest": [16, 32]},
    },
    "half stem": {"stem_stride": 2, "backbone": "resnet18", "norm": "group"},
    "timm": {"backbone": "resnet10t"},
    "no mask rating": {"mask_iou": False, "mask_attention": False},
    "semantic": {"semantic": {"width": 32}},
    "soft nms": {"decoding": {**SMALL["decoding"], "soft_nms_sigma": 0.5}},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS, scope="module")
def net(request):
    torch.manual_seed(0)
    made = build_model(name="centermask2", in_channels=2, classes=CLASSES, **{**SMALL, **request.param})
    made.set_statistics(STATS)
    made.train()
    with torch.no_grad():  # so that batch statistics are not those of no data
        for _ in range(3):
            made(make_images(4, 64, 64, seed=7))
    return made.eval()


def make_images(batch, height, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 2, height, width), generator=generator).float()


def make_targets(batch, height, width, *, cells=3, ignored=False):
    """Squares of 9 px in a row; the class map says the same."""
    labels = torch.zeros(batch, height, width, dtype=torch.int32)
    for cell in range(cells):
        labels[:, 4:13, 2 + 12 * cell : 11 + 12 * cell] = cell + 1
    classes = torch.full((cells,), IGNORE) if ignored else torch.arange(cells) % 2 + 1
    table = torch.cat([torch.zeros(1, dtype=torch.long), classes])
    class_map = table[labels.long()]
    return Targets(
        class_map=torch.full_like(class_map, IGNORE) if ignored else class_map,
        distance=(labels > 0).float(),
        label_image=labels,
        cell_classes=(classes,) * batch,
    )


@torch.no_grad()
def predict(net, images):
    return net(images)


def check_results(net, results, shape):
    batch, _, height, width = shape
    assert list(results) == list(net.spec.outputs)
    most, kinds = results["scores"].shape[1], len(CLASSES) - 1
    rows = {"boxes": (4,), "class_scores": (kinds,), "masks": results["masks"].shape[2:]}
    for name, values in results.items():
        if name == "probabilities":
            assert values.shape == (batch, len(CLASSES), height, width)
        else:
            assert values.shape == (batch, most, *rows.get(name, ()))
        assert values.dtype == {"classes": torch.int64, "valid": torch.bool}.get(name, torch.float32)
        assert values.isfinite().all()
    valid = results["valid"]
    assert set(results["classes"][valid].tolist()) <= {1, 2}
    for name in ("scores", "class_scores", "masks"):
        assert ((results[name] >= 0) & (results[name] <= 1)).all()
    assert (results["boxes"][valid][:, 2:] >= results["boxes"][valid][:, :2]).all()
    # each image's cells come first, its best first
    assert (valid[:, :-1] >= valid[:, 1:]).all()
    assert (results["scores"][:, :-1] >= results["scores"][:, 1:] - 1e-6).all()


def test_net_is_a_segnet_that_declares_itself(net):
    assert isinstance(net, SegNet)
    assert (net.spec.name, net.spec.kind, net.spec.classes) == ("centermask2", "instance", CLASSES)
    assert ("mask_scores" in net.spec.outputs) == (net.settings.mask_iou)
    assert ("probabilities" in net.spec.outputs) == (net.semantic is not None)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (7, 200), (64, 64)])
def test_any_size_is_taken(net, size):
    for batch in (1, 2):
        check_results(net, predict(net, make_images(batch, *size)), (batch, 2, *size))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_every_dtype_gives_the_same(net, dtype):
    images = make_images(1, 31, 33)
    expected = predict(net, images)
    for name, values in predict(net, images.to(dtype)).items():
        assert torch.equal(values, expected[name])


def test_an_image_has_the_same_cells_alone_and_in_any_batch(net):
    images = make_images(3, 45, 70)
    together = predict(net, images)
    for index in range(3):
        alone = predict(net, images[index : index + 1])
        count = int(alone["valid"].sum())
        assert int(together["valid"][index].sum()) == count
        for name, values in alone.items():
            cut = together[name][index] if name == "probabilities" else together[name][index, :count]
            torch.testing.assert_close(values[0], cut, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 65535])
def test_constant_images_give_numbers(net, count):
    images = torch.full((1, 2, 16, 24), count, dtype=torch.uint16)
    check_results(net, predict(net, images), images.shape)
    losses = net.losses(images, make_targets(1, 16, 24, cells=1))
    assert all(value.isfinite() for value in losses.values())


def test_decode_and_losses_share_the_logits(net):
    images, targets = make_images(2, 48, 64), make_targets(2, 48, 64)
    with torch.no_grad():
        logits = net.logits(images)
        expected = net(images)
        for name, values in net.decode(logits).items():
            assert torch.equal(values, expected[name])
        torch.manual_seed(3)
        first = net.losses_from(logits, targets)
        torch.manual_seed(3)
        assert first == net.losses(images, targets)


@pytest.mark.parametrize("case", ["cells", "none", "ignored"])
def test_every_trained_parameter_gets_a_finite_gradient(net, case):
    """Also where there is no cell: a parameter without a gradient would hang distributed training."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    targets = make_targets(2, 64, 64, cells=0 if case == "none" else 3, ignored=case == "ignored")
    losses = net.losses(make_images(2, 64, 64), targets)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    slopes = {name: p.grad for name, p in net.named_parameters() if p.requires_grad}
    net.zero_grad()
    net.eval()
    net.load_state_dict(before)
    assert [name for name, slope in slopes.items() if slope is None or not slope.isfinite().all()] == []
    assert any(slope.any() for slope in slopes.values())


def test_loss_falls_on_one_batch(net):
    images, targets = make_images(2, 64, 64), make_targets(2, 64, 64)
    copy = build_model(**net.config)
    copy.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(copy.train().parameters(), lr=1e-3)
    values = []
    for _ in range(12):
        total = sum(copy.losses(images, targets).values())
        values.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert min(values[-3:]) < values[0]


def test_config_and_weights_rebuild_the_net(net):
    torch.manual_seed(99)
    copy = build_model(**net.config).eval()
    copy.load_state_dict(net.state_dict())
    assert (copy.spec, copy.config, copy.settings) == (net.spec, net.config, net.settings)
    images = make_images(2, 31, 33)
    expected = predict(net, images)
    for name, values in predict(copy, images).items():
        assert torch.equal(values, expected[name])


def test_padding_of_a_batch_is_told_by_the_sizes(net):
    """A padded image trains as its own size: what lies in the padding does not matter."""
    images, targets = make_images(2, 64, 64), make_targets(2, 64, 64)
    sizes = ((64, 64), (40, 48))
    padded = Targets(**{**vars(targets), "sizes": sizes})
    other = images.clone()
    other[1, :, 40:] = 5000
    other[1, :, :, 48:] = 7000
    totals = []
    for given in (images, other):
        torch.manual_seed(0)
        with torch.no_grad():
            totals.append(net.losses(given, padded))
    assert totals[0] == totals[1]


def test_evaluation_draws_the_same_boxes_each_time_and_leaves_other_draws_alone():
    """Masks learn from some of the boxes, drawn at random: validation losses of two epochs must be comparable."""
    torch.manual_seed(0)
    settings = {**SMALL, "roi_sampling": {"per_image": 8}}  # 2 boxes of more
    net = build_model(name="centermask2", in_channels=2, classes=CLASSES, **settings)
    images, targets = make_images(2, 64, 64), make_targets(2, 64, 64)

    def compute(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return net.losses(images, targets)["mask"].item(), torch.rand(1).item()

    net.train()
    assert compute(1)[0] != compute(2)[0]
    net.eval()
    (first, after), (second, _) = compute(1), compute(2)
    assert first == second
    torch.manual_seed(1)
    assert torch.rand(1).item() == after


def test_a_batch_too_small_for_batch_normalisation_is_explained():
    settings = {**SMALL, "top_levels": 0, "assigning": {"sizes_of_interest": [16, 32]}}
    net = build_model(name="centermask2", in_channels=2, classes=CLASSES, **settings).train()
    with pytest.raises(ConfigError, match=r"so small that its deepest map is one pixel; .*; try: model\.norm=group"):
        net.losses(make_images(1, 32, 32), make_targets(1, 32, 32, cells=2))


def test_boxes_may_reach_beyond_the_image_and_masks_fill_them():
    """Cut off at the border they would squeeze the masks, which are stretched over the whole of them."""
    torch.manual_seed(0)
    net = build_model(name="centermask2", in_channels=2, classes=CLASSES, **SMALL).eval()
    images = make_images(1, 64, 64)
    logits = net.logits(images)
    for name in logits:
        if name.startswith("ltrb"):
            logits[name] = torch.full_like(logits[name], 3.0)  # in strides: 24 px or more to each side
    with torch.no_grad():
        boxes = net.decode(logits)["boxes"][0]
    assert (boxes[:, 0] < 0).any()
    assert (boxes[:, 2] > 64).any()
    torch.testing.assert_close(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    sides = (boxes[:, 2] - boxes[:, 0]).round().int().tolist()
    assert set(sides) <= {48, 96, 192, 384, 768}


def test_features_are_finest_first(net):
    with torch.no_grad():
        features = net.features(make_images(2, 31, 33))
    areas = [maps.shape[-2] * maps.shape[-1] for maps in features.values()]
    assert len(areas) >= 2
    assert areas == sorted(areas, reverse=True)


def test_it_is_declared_that_tiles_see_more_than_themselves(net):
    """Group normalisation looks at the whole image: a change far away changes the class scores here."""
    assert not net.spec.tiles
    strips = make_images(1, 32, 1024).repeat(2, 1, 1, 1)
    strips[1, :, :, -64:] = 3000 - strips[1, :, :, -64:]
    with torch.no_grad():
        finest = next(value for name, value in net.logits(strips).items() if name.startswith("class_logits"))
    assert not torch.allclose(finest[0, ..., 0], finest[1, ..., 0], atol=1e-6)
