"""What every registered net promises, in every attention and kind; a declared no is tested as well as a yes."""

import numpy as np
import pytest
import torch

from cellvision.models.base import MAP_KINDS, SegNet
from cellvision.models.build import build_model, list_models
from cellvision.models.unet.attention import ATTENTIONS
from cellvision.types import IGNORE, DataStats, Targets

CLASSES = {"semantic": ("background", "nucleus", "debris"), "viability": ("background", "live", "dead")}
STATS = DataStats(offset=(100.0, 20.0), scale=(80.0, 50.0), class_pixels=(900, 90, 10))

SMALL = {
    "unet": {"widths": (4, 8, 8)},
    "swin_unet": {"widths": (8, 16), "depths": (2, 2), "heads": (1, 2), "window": 4},
}
"""Arguments that keep a net fast; a model without a row is tested as it comes."""

VARIANTS = {
    "unet": [
        *({"attention": attention, "kind": kind} for attention in ATTENTIONS for kind in MAP_KINDS),
        {"activation": "sigmoid"},
        {"norm": "group", "kind": "viability"},
        {"widths": (4, 8)},
        {"widths": (4, 4, 4, 4, 4, 4)},
        {"encoder": "resnet10t", "kind": "viability", "attention": "gate"},
    ],
    "swin_unet": [
        *({"kind": kind} for kind in MAP_KINDS),
        {"activation": "sigmoid", "drop_path": 0.2},
        {"patch_size": 4, "window": 3},
        {"widths": (4, 4, 4), "depths": (1, 2, 3), "heads": (1, 2, 4), "mlp_ratio": 0.5},
    ],
}
FIND_CELLS = {"centermask2", "detectron2"}
"""Nets of kind instance, which have tests of their own."""

MAP_NETS = [name for name in list_models() if name not in FIND_CELLS]
CASES = [(name, variant) for name in MAP_NETS for variant in VARIANTS.get(name, [{}])]


def describe(case):
    return "-".join([case[0], *(str(value) for value in case[1].values())])


@pytest.fixture(params=CASES, ids=describe, scope="module")
def net(request):
    name, variant = request.param
    torch.manual_seed(0)
    classes = CLASSES[variant.get("kind", "semantic")]
    made = build_model(name=name, **{"in_channels": 2, "classes": classes, **SMALL.get(name, {}), **variant})
    made.set_statistics(STATS)
    made.train()
    with torch.no_grad():  # so that batch statistics are not those of no data
        for _ in range(3):
            made(make_images(4, 64, 64, seed=7))
    return made.eval()


def make_images(batch, height, width, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 2, height, width), generator=generator).float()


def make_targets(batch, height, width, *, ignored=False):
    generator = torch.Generator().manual_seed(1)
    class_map = torch.randint(0, 3, (batch, height, width), generator=generator)
    if ignored:
        class_map[:] = IGNORE
    return Targets(
        class_map=class_map,
        distance=torch.rand(batch, height, width, generator=generator) * (class_map > 0),
        label_image=(class_map > 0).int(),
        cell_classes=(torch.ones(1, dtype=torch.long),) * batch,
    )


@torch.no_grad()
def predict(net, images):
    return net(images)


def check_results(net, results, shape):
    batch, _, height, width = shape
    assert list(results) == list(net.spec.outputs)
    depth = {"probabilities": len(net.spec.classes), "distance": 1}
    for name, maps in results.items():
        assert maps.shape == (batch, depth[name], height, width)
        assert maps.dtype == torch.float32
        assert maps.isfinite().all()
        assert maps.min() >= 0
        assert maps.max() <= 1
    if net.config.get("activation") != "sigmoid":
        torch.testing.assert_close(results["probabilities"].sum(1), torch.ones(batch, height, width))


def test_net_is_a_segnet_that_declares_itself(net):
    assert isinstance(net, SegNet)
    assert isinstance(net, torch.nn.Module)
    assert net.spec.name == net.config["name"]
    assert net.spec.kind == net.config.get("kind", "semantic")
    assert net.spec.classes == CLASSES[net.spec.kind]
    assert ("distance" in net.spec.outputs) == (net.spec.kind == "viability")


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (7, 200), (64, 64)])
def test_any_size_comes_back_at_that_size(net, size):
    for batch in (1, 2):
        check_results(net, predict(net, make_images(batch, *size)), (batch, 2, *size))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_every_dtype_gives_the_same(net, dtype):
    images = make_images(1, 31, 33)
    for name, maps in predict(net, images.to(dtype)).items():
        assert torch.equal(maps, predict(net, images)[name])


def test_an_image_does_not_depend_on_its_batch(net):
    images = make_images(3, 31, 33)
    together = predict(net, images)
    for index in range(3):
        for name, maps in predict(net, images[index : index + 1]).items():
            torch.testing.assert_close(maps[0], together[name][index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 65535])
def test_constant_images_give_numbers(net, count):
    images = torch.full((1, 2, 16, 24), count, dtype=torch.uint16)
    check_results(net, predict(net, images), images.shape)
    losses = net.losses(images, make_targets(1, 16, 24))
    assert all(value.isfinite() for value in losses.values())


def test_steps_of_forward_and_losses_agree(net):
    images, targets = make_images(2, 31, 33), make_targets(2, 31, 33)
    with torch.no_grad():
        logits = net.logits(images)
        for name, maps in net.decode(logits).items():
            assert torch.equal(maps, net(images)[name])
        assert net.losses_from(logits, targets) == net.losses(images, targets)


@pytest.mark.parametrize("ignored", [False, True])
def test_every_parameter_gets_a_finite_gradient(net, ignored):
    """Also where no pixel counts: a parameter without a gradient would hang distributed training."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    losses = net.losses(make_images(2, 37, 64), make_targets(2, 37, 64, ignored=ignored))
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    total = sum(losses.values())
    assert (total == 0) == ignored
    total.backward()
    slopes = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    net.eval()
    net.load_state_dict(before)
    assert [name for name, slope in slopes.items() if slope is None or not slope.isfinite().all()] == []
    assert any(slope.any() for slope in slopes.values()) != ignored


def test_loss_falls_on_one_batch(net):
    images, targets = make_images(2, 32, 32), make_targets(2, 32, 32)
    copy = build_model(**net.config)
    copy.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(copy.train().parameters(), lr=1e-2)
    values = []
    for _ in range(8):
        total = sum(copy.losses(images, targets).values())
        values.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert values[-1] < values[0]


def test_config_and_weights_rebuild_the_net(net):
    torch.manual_seed(99)
    copy = build_model(**net.config).eval()
    copy.load_state_dict(net.state_dict())
    assert (copy.spec, copy.config) == (net.spec, net.config)
    images = make_images(2, 31, 33)
    for name, maps in predict(net, images).items():
        assert torch.equal(maps, predict(copy, images)[name])


def test_features_are_finest_first(net):
    with torch.no_grad():
        features = net.features(make_images(2, 31, 33))
    areas = [maps.shape[-2] * maps.shape[-1] for maps in features.values()]
    assert len(areas) >= 2
    assert areas == sorted(areas, reverse=True)
    assert all(maps.shape[0] == 2 for maps in features.values())


def test_what_is_declared_of_tiling_holds(net):
    """Two strips that differ only at the right end: their left ends agree exactly where the net can be tiled."""
    strips = make_images(1, net.spec.stride, 768).repeat(2, 1, 1, 1)
    strips[1, :, :, -64:] = 3000 - strips[1, :, :, -64:]
    ends = [maps[..., :16] for maps in predict(net, strips).values()]
    blind = all(torch.allclose(end[0], end[1], rtol=0, atol=1e-7) for end in ends)
    assert blind == net.spec.tiles


def test_shift_by_the_stride_shifts_the_result(net):
    if not net.spec.tiles:
        pytest.skip("declared: sees the whole image")
    # a deep net sees further, but its surroundings may be small: narrow images have their effect within the margin
    stride, margin = net.spec.stride, 12 * net.spec.stride
    images = make_images(1, stride, 2 * margin + 8 * stride)
    whole, shifted = predict(net, images), predict(net, images[..., stride:])
    for name, maps in whole.items():
        inside = maps[..., stride:][..., margin:-margin]
        torch.testing.assert_close(shifted[name][..., margin:-margin], inside, rtol=1e-4, atol=1e-5)
    if stride > 1:
        off = predict(net, images[..., 1:])["probabilities"][..., margin : -margin - stride]
        assert not torch.allclose(off, whole["probabilities"][..., 1 + margin : -margin - stride], atol=1e-5)


def test_exported_graph_gives_the_same_at_every_size(tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    name, dynamic = "unet", torch.export.Dim.DYNAMIC
    net = build_model(
        name=name, in_channels=2, classes=CLASSES["viability"], kind="viability", attention="gate", widths=(4, 8, 8)
    )
    net.set_statistics(STATS)
    net.eval()
    program = torch.onnx.export(
        net,
        (make_images(2, 37, 45),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
        input_names=["image"],
        output_names=list(net.spec.outputs),
        verbose=False,
    )
    program.save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for batch, height, width in [(1, 1, 1), (3, 31, 33), (1, 64, 64), (3, 7, 200)]:
        images = make_images(batch, height, width)
        expected = predict(net, images)
        for output, found in zip(net.spec.outputs, session.run(None, {"image": images.numpy()}), strict=True):
            np.testing.assert_allclose(found, expected[output].numpy(), atol=1e-5)
